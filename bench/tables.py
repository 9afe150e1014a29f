"""What a terminal shows: scores and gates, and how far the work is."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.accuracy import Score
from bench.verdict import Check, Gate
from engines.units import human_size

if TYPE_CHECKING:
    from bench.divergence import Divergence


def score_table(scores: Sequence[Score]) -> Table:
    """A line for each task and one for all."""
    heads = ("task", "items", "score %", "± s.e.", "95 % interval", "guess %", "right %")
    shown = Table(*heads, box=None, header_style="bold")
    for score in scores:
        interval = f"{100 * score.low:.1f} to {100 * score.high:.1f}"
        shares = (score.accuracy, score.standard_error, score.guess, score.correct)
        mean, error, guess, right = (f"{100 * x:.1f}" for x in shares)
        shown.add_row(score.task, str(score.n), mean, error, interval, guess, right)
    return shown


def gate_table(judged: Gate) -> Table:
    """Every check, then every task without one and every waiver, as a terminal shows them."""
    shown = Table("", "check", "A", "B", "difference", "interval", "limit", "", box=None, header_style="bold")
    checked = {check.name for check in judged.checks}
    for row in (*judged.checks, *(row for row in judged.slices if row.name not in checked)):
        shows = human_size if row.unit == "bytes" else "{:,.4g}".format
        values = (row.baseline, row.candidate, row.delta, row.ci_low, row.ci_high, row.limit)
        a, b, delta, low, high, limit = ("" if value is None else shows(value) for value in values)
        verdict = f"{row.verdict}{', waived' if row.waived else ''}" if isinstance(row, Check) else ""
        interval = f"{low} to {high}" if low else ""
        shown.add_row(
            verdict, row.name, a, b, ("×" if row.relative else "") + delta, interval, limit, row.reason
        )
    for waiver in judged.waivers:
        why = f"{waiver['status']}: {waiver['reason']} (until {waiver['expires']})"
        shown.add_row("waiver", waiver["check"], "", "", "", "", "", why)
    return shown


def divergence_table(found: Divergence) -> Table:
    """A line for each place of a model, those beyond their limits marked; then what was found."""
    heads = ("", "place", "distance", "by rounding", "limit", "gain", "limit")
    shown = Table(*heads, box=None, header_style="bold", caption=found.detail, caption_justify="left")
    for row in found.rows:
        figures = (f"{value:.4f}" for value in (row.distance, row.expected, row.limit, row.gain))
        name = f"{row.place} {row.part}".strip()
        shown.add_row("DIVERGES" if row.diverges else "", name, *figures, f"1 ± {row.gain_limit:.3f}")
    return shown


def tell(line: str) -> None:
    """On stderr, where progress goes."""
    print(line, file=sys.stderr, flush=True)


def show(shown: Table, document: dict[str, Any], options: Namespace) -> None:
    """The table, or the document where JSON is asked for."""
    if options.json:
        print(json.dumps(document))
    else:
        Console(width=None if sys.stdout.isatty() else 180).print(shown)
