"""`python -m quantize`: a checkpoint's decoder in 4 bits, as a standard checkpoint."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

from engines.arguments import above_zero, exit_code, parse
from engines.errors import UserError
from engines.units import duration

CALIBRATION = Path(__file__).with_name("calibration.jsonl")


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(
        prog="python -m quantize",
        description="Quantise a Qwen3-VL checkpoint's decoder linears to symmetric 4 bits; vision tower, "
        "embeddings and LM head stay as they are. A stopped run goes on from its last finished layer.",
    )
    top.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder in the Hugging Face layout")
    top.add_argument(
        "--method",
        choices=("gptq", "awq", "rtn"),
        default="gptq",
        help="rtn is plain rounding, the control; default gptq",
    )
    top.add_argument(
        "--group-size",
        type=int,
        choices=(32, 64, 128),
        default=128,
        help="columns that share a scale; default 128",
    )
    top.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write, new")
    top.add_argument(
        "--calibration",
        type=Path,
        default=CALIBRATION,
        metavar="FILE",
        help="JSON lines with messages and answer; default the packaged set",
    )
    top.add_argument(
        "--format",
        choices=("compressed-tensors", "gptq", "awq"),
        default="compressed-tensors",
        help="layout of the 4-bit weights, whatever the method; default compressed-tensors",
    )
    top.add_argument(
        "--damping",
        type=float,
        default=0.01,
        metavar="D",
        help="gptq, awq: share of the Hessian's mean diagonal added to it; default 0.01",
    )
    top.add_argument("--sensitivity", action="store_true", help="measure what the 4 bits of each layer cost")
    top.add_argument(
        "--max-kl",
        type=above_zero,
        metavar="NATS",
        help="keep the worst layers in 8 bits, as many as it takes to stay below; implies --sensitivity",
    )
    top.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 when done and 1 on an error (2, usage, is argparse's)."""
    options = parse(parser(), arguments)
    return exit_code(lambda: _quantize(options), options.out, resumes=True)


def _quantize(options: argparse.Namespace) -> None:
    out = options.out.absolute()
    work_dir = out.with_name(f".{out.name}.work")
    if out.exists():  # before torch is imported
        raise UserError(f"{options.out} already exists: choose another output, or remove it first")
    from quantize.run import quantize

    with progress() as report:
        summary = quantize(
            options.checkpoint,
            out,
            method=options.method,
            group_size=options.group_size,
            calibration=options.calibration,
            work_dir=work_dir,
            format=options.format,
            damping=options.damping,
            sensitivity=options.sensitivity,
            max_kl=options.max_kl,
            progress=report,
        )
    shutil.rmtree(work_dir)
    if options.json:
        print(json.dumps({"path": str(out), **summary}))
    else:
        print(
            f"{options.out}: {options.method}, groups of {options.group_size}, mean relative output error "
            f"{summary['error']:.4f} (round-to-nearest {summary['rtn_error']:.4f})"
        )
        if "sensitivity" in summary:
            print("\n".join(costs(summary)))


def costs(summary: dict[str, Any]) -> list[str]:
    """What the layers cost, the worst first, and what all do together."""
    found, kept = summary["sensitivity"], summary["eight_bit"]
    worst = sorted(range(len(found)), key=lambda index: -found[index])
    lines = [f"layer {i}: KL {found[i]:.5f} in 4 bits{', kept in 8' if i in kept else ''}" for i in worst]
    return [*lines, f"all layers, {len(kept)} of them in 8 bits: KL {summary['kl']:.5f}"]


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Reports steps on stderr, with the time remaining: a bar on a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # The pace of the last ten minutes: by default rich forgets after 30 s, less than a layer may take.
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=600) as bars:
        tasks = {
            step: bars.add_task(step, total=None)
            for step in ("calibrate", "quantize", "sensitivity", "write")
        }
        yield lambda step, done, total: bars.update(tasks[step], completed=done, total=total)


def plain_lines(clock: Callable[[], float] = time.monotonic) -> Callable[[str, int, int], None]:
    """Prints a line for every layer, and of other steps at most one in ten seconds and the last.

    The time remaining of a step goes by the pace of its last few units.
    """
    recent: dict[str, deque[tuple[int, float]]] = {}
    printed = -inf

    def report(step: str, done: int, total: int) -> None:
        nonlocal printed
        now = clock()
        times = recent.setdefault(step, deque(maxlen=6))
        times.append((done, now))
        if done == total or (done and (step == "quantize" or now - printed >= 10)):
            first, began = times[0]
            left = (now - began) / max(1, done - first) * (total - done)
            remaining = f", about {duration(left)} to go" if first < done < total else ""
            print(f"{step} {done}/{total}{remaining}", file=sys.stderr, flush=True)
            printed = now

    return report


if __name__ == "__main__":
    sys.exit(main())
