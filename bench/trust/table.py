"""What `bench trust` found, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from bench.trust.rates import Rate, draws_needed
from bench.trust.run import Trust
from bench.verdict import Verdict

SHOWN = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL)


def rate_table(found: Trust) -> Table:
    """A line for each truth: the verdicts on it, and how many were wrong."""
    heads = ("candidate", "truly is", *map(str, SHOWN), "wrong", "95 % interval", "promise", "")
    shown = Table(*heads, box=None, header_style="bold")
    for rate in found.rates:
        wrong = rate.found
        shown.add_row(
            rate.name,
            rate.truth,
            *(str(rate.verdicts[verdict]) for verdict in SHOWN),
            f"{100 * wrong.estimate:.1f} % false {rate.wrong}",
            f"{100 * wrong.low:.1f} to {100 * wrong.high:.1f} %",
            f"{100 * rate.promise:.0f} %" if rate.promise is not None else "",
            _kept(rate),
        )
    return shown


def fault_table(found: Trust) -> Table:
    """A line for each fault of the model: what it costs, and where it was found."""
    heads = ("fault", "loses at most", "verdict", "is at", "named", "by")
    shown = Table(*heads, box=None, header_style="bold")
    for one in found.planted:
        shown.add_row(
            one.fault,
            f"{one.loss.points:.1f} points{one.loss.where}" if one.loss.points > 0 else "nothing",
            str(one.verdict),
            one.place,
            one.named or "nothing",
            one.detail,
        )
    return shown


def problems(found: Trust) -> Iterator[str]:
    """Each promise that was not shown to be kept, in words."""
    for rate in found.rates:
        if not rate.held:
            more = draws_needed()
            few = f"; {more} draws are the fewest that can" if rate.draws < more else ""
            yield f"{rate.name}, {rate.truth}: not shown to be kept, up to {100 * rate.found.high:.1f} %{few}"
    for one in found.planted:
        if one.named != one.place:
            yield f"{one.fault}: is at {one.place}, and {one.named or 'nothing'} was named"


def _kept(rate: Rate) -> str:
    if rate.promise is None:
        return "told, not held"
    return "kept" if rate.held else "NOT SHOWN"
