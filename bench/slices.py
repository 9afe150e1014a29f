"""Every task in numbers: what the baseline scores, and what each variant gains or loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.figures import signed
from bench.verdict import Row


@dataclass(frozen=True)
class Cell:
    """A difference in points with its interval; `kind` is FAIL where it is shown to be a loss."""

    text: str
    kind: str


@dataclass(frozen=True)
class SliceTable:
    """A row for each task: name, number of items, the baseline's percent, a cell a variant."""

    variants: list[str]
    rows: list[tuple[str, int, str, list[Cell]]]


def slice_table(slices: Mapping[str, Sequence[Row]]) -> SliceTable | None:
    """The gate's slices of several variants against one baseline, the greatest mean loss first."""
    told = {name: {row.slice: row for row in rows} for name, rows in slices.items() if rows}
    if not told:
        return None
    tasks = {name: row for rows in told.values() for name, row in rows.items()}

    def mean(task: str) -> float:
        deltas = [row.delta or 0.0 for rows in told.values() for row in [rows.get(task)] if row]
        return sum(deltas) / len(deltas)

    rows = []
    for task in sorted(tasks, key=mean):
        first = tasks[task]
        cells = [_cell(told[name].get(task)) for name in told]
        rows.append((task, first.n or 0, f"{first.baseline:.1f}", cells))
    return SliceTable(list(told), rows)


def _cell(row: Row | None) -> Cell:
    if row is None or row.delta is None or row.ci_low is None or row.ci_high is None:
        return Cell("-", "soft")
    kind = "FAIL" if row.ci_high < 0 else "PASS" if row.ci_low > 0 else ""
    return Cell(f"{signed(row.delta)} ({signed(row.ci_low)} to {signed(row.ci_high)})", kind)
