"""`bench latency`: speed, one request at a time and under load."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.arms import here
from bench.arrivals import under_load
from bench.breakdown import PHASES, breakdown, figure
from bench.latency import AGAIN, METRICS, Timing, measure, of_arm, quantiles, single, table
from bench.noise import told
from bench.power import observed, sentence
from bench.statistics import Interval, median_ratio
from bench.suites.catalogue import load_suite
from bench.tables import show, tell
from engines.errors import UserError
from engines.processor import Processor
from engines.session import Session, open_session


def latency(options: Namespace) -> int:
    """Every phase's quantiles, for small and large requests and every load apart; end to end also as a ratio
    to the first, beside what the first is against itself."""
    folders: list[Path] = options.directories
    arms = {f"{path} #{i + 1}" if path in folders[:i] else str(path): path for i, path in enumerate(folders)}
    baseline = next(iter(arms))
    batches = sorted({1, *options.batch})
    if batches[-1] > options.requests:
        raise UserError(f"a batch of {batches[-1]} takes as many requests: expected --requests {batches[-1]}")
    twice = {baseline: folders[0], baseline + AGAIN: folders[0]}
    timed = timings(twice | arms, options, batches=batches)
    loads = (0.0, *dict.fromkeys(options.rates))
    noise = {load: _to_first(timed, baseline, baseline + AGAIN, load) for load in loads}
    shown = Table(
        "",
        "load",
        *(f"{metric} p50 / p95 / p99" for metric in METRICS),
        "e2e ratio",
        "first against itself",
        box=None,
        header_style="bold",
    )
    slices = Table("", "", *PHASES, "n", box=None, header_style="bold")
    found = []
    for name in arms:
        ratios = {load: _to_first(timed, baseline, name, load) for load in loads}
        summary = {
            load: {metric: quantiles(table(_at(timed, name, load), metric)) for metric in METRICS}
            for load in loads
        }
        for load, metrics in summary.items():
            cells = [figure(metrics[metric]) for metric in METRICS]
            cells += [told(x) if x else "-" for x in (ratios[load], noise[load])]
            shown.add_row(name if not load else "", f"{load:g}" if load else "-", *cells)
        parts = breakdown([timing for timing in timed if timing.arm == name])
        for part in parts:
            cells = [figure(part.get(phase)) for phase in PHASES]
            slices.add_row(name if part is parts[0] else "", part["slice"], *cells, str(part["n"]))
        sides = of_arm(timed, baseline), of_arm(timed, name)
        spent = observed(*sides, options.price_per_hour, options.currency)
        found.append(
            {
                "path": str(arms[name]),
                **summary[0.0],
                "e2e_ratio": _fields(ratios[0.0]),
                "loads": [
                    {"load": load, "e2e_ratio": _fields(ratios[load]), "noise": _fields(noise[load])}
                    for load in loads[1:]
                ],
                "slices": parts,
                "observed": [row.model_dump(mode="json") for row in spent],
            }
        )
        if not options.json:
            tell(f"{name}: {sentence(spent)}")
    sizes = {"requests": options.requests, "repeats": options.repeats, "batches": batches}
    show(shown, {**sizes, "noise": _fields(noise[0.0]), "arms": found}, options)
    if not options.json:
        show(slices, {}, options)
    return 0


def _to_first(timed: Sequence[Timing], first: str, name: str, load: float) -> Interval | None:
    before, after = (table(_at(timed, arm, load), "e2e_latency_ms") for arm in (first, name))
    return median_ratio(before, after) if len(before) > 1 else None


def _at(timed: Sequence[Timing], name: str, load: float) -> list[Timing]:
    return [timing for timing in single(timed, name) if timing.load == load]


def _fields(found: Interval | None) -> dict[str, float] | None:
    return asdict(found) if found else None


def timings(
    arms: dict[str, Path],
    options: Namespace,
    sessions: dict[str, Session] | None = None,
    batches: Sequence[int] = (1,),
) -> list[Timing]:
    """Every arm on the same requests, which the first arm's processor prepares. What `sessions` holds open is
    not opened once more."""
    items = load_suite(options.suite, options.requests, options.seed)
    processor = Processor.load(next(iter(arms.values())))
    held = sessions or {}
    opened = {
        name: held.get(name.removesuffix(AGAIN)) or open_session(path, threads=options.threads)
        for name, path in arms.items()
    }
    served = {name: here(session) for name, session in opened.items()}
    requests = [processor(item.messages) for item in items]
    work: dict[str, Any] = {"output_tokens": options.output_tokens, "repeats": options.repeats}
    alone = measure(
        served, requests, **work, warmup=options.warmup, batches=batches, progress=progress("latency")
    )
    rates = list(dict.fromkeys(options.rates))
    return alone + under_load(served, requests, alone, rates, **work, progress=progress("under load"))


def progress(title: str) -> Callable[[int, int], None]:
    """One line rewritten in place on a terminal, silence elsewhere."""

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{title}: {done}/{total}", end=end, file=sys.stderr, flush=True)

    return report
