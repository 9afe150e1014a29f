"""`python -m bench history`: figures over time, and whether the newest build has drifted."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from bench.history.drift import DRIFT, Change, changes
from bench.history.page import cells, sentence, series, write_page
from bench.history.runs import FILE, Run, read_history
from bench.tables import show
from engines.errors import UserError

BARS = "▁▂▃▄▅▆▇█"
SHOWN = 24  # builds of a line on the terminal


def history(options: Namespace) -> int:
    """A line for each figure, a page of all of them over time; exit code 3 where one has drifted."""
    paths = options.files or sorted(Path("artifacts").glob(f"*/{FILE}"))
    runs = read_history(paths)
    if not runs:
        looked = ", ".join(map(str, paths)) or f"artifacts/*/{FILE}"
        raise UserError(f"no runs in {looked}: every `python -m build all` adds one")
    models = {run.model: None for run in runs}
    if len(models) > 1:
        raise UserError(f"runs of {' and '.join(models)}: name the {FILE} of one of them")
    found = changes(runs, confidence=options.confidence, tolerance=options.tolerance, against=options.against)
    if options.out:
        write_page(runs, found, options.out)
        print(f"written: {options.out}", file=sys.stderr)
    heads = ("variant", "figure", "so far", "published", "now", "change", "", "what differs")
    shown = Table(*heads, box=None, header_style="bold")
    for change in found:
        if "," not in change.metric or change.verdict == DRIFT:
            variant, figure, *rest = cells(change)
            values = [series(run)[change.metric] for run in runs if _has(run, change)]
            shown.add_row(variant, figure, sparkline([value for value, *_ in values][-SHOWN:]), *rest)
    document = {
        "model": runs[-1].model,
        "runs": len(runs),
        "newest": _newest(runs),
        "drift": any(change.verdict == DRIFT for change in found),
        "changes": [asdict(change) | {"unit": change.unit} for change in found],
    }
    show(shown, document, options)
    if not options.json:
        print(sentence(found))
    return 3 if document["drift"] else 0


def sparkline(values: list[float]) -> str:
    """One bar a value, the lowest the shortest."""
    low, spread = min(values, default=0.0), max(values, default=0.0) - min(values, default=0.0)
    return "".join(BARS[round((value - low) / spread * (len(BARS) - 1)) if spread else 0] for value in values)


def _has(run: Run, change: Change) -> bool:
    return run.variant == change.variant and change.metric in series(run)


def _newest(runs: list[Run]) -> dict[str, str | None]:
    return {"time": runs[-1].time, "commit": runs[-1].commit}
