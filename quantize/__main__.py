"""`python -m quantize`: a checkpoint's decoder in 4 bits, as a standard checkpoint."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines.errors import UserError

CALIBRATION = Path(__file__).with_name("calibration.jsonl")


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser(
        prog="python -m quantize",
        description="Quantise a Qwen3-VL checkpoint's decoder linears to symmetric 4 bits; vision tower, "
        "embeddings and LM head stay as they are. A stopped run goes on from its last finished layer.",
    )
    top.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder in the Hugging Face layout")
    top.add_argument("--method", choices=("gptq", "awq", "rtn"), default="gptq", help="default gptq")
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
        help="gptq: share of the Hessian's mean diagonal added to it; default 0.01",
    )
    top.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0 when done and 1 on an error (2, usage, is argparse's)."""
    options = parser().parse_args(arguments)
    out = options.out.absolute()
    work_dir = out.with_name(f".{out.name}.work")
    try:
        if out.exists():  # before torch is imported
            raise UserError(f"{options.out} already exists: choose another output, or remove it first")
        from quantize.pipeline import quantize_checkpoint

        with progress() as report:
            summary = quantize_checkpoint(
                options.checkpoint,
                out,
                method=options.method,
                group_size=options.group_size,
                calibration=options.calibration,
                work_dir=work_dir,
                format=options.format,
                damping=options.damping,
                progress=report,
            )
        shutil.rmtree(work_dir)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"path": str(out), **summary}))
    else:
        print(
            f"{options.out}: {options.method}, groups of {options.group_size}, mean relative output error "
            f"{summary['error']:.4f} (round-to-nearest {summary['rtn_error']:.4f})"
        )
    return 0


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Reports steps on stderr: a bar on a terminal, a line for every layer and finished step elsewhere."""
    if not sys.stderr.isatty():
        yield _plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>9}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {step: bars.add_task(step, total=None) for step in ("calibrate", "quantize", "write")}
        yield lambda step, done, total: bars.update(tasks[step], completed=done, total=total)


def _plain(step: str, done: int, total: int) -> None:
    if done == total or (step == "quantize" and done):
        print(f"{step} {done}/{total}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
