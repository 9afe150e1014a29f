"""`python -m bench router` from end to end: the proxies in turn, then the rollbacks."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict
from statistics import median
from typing import Any

from rich.table import Table

from bench.router import rollback
from bench.router.run import measure, table
from bench.tables import tell

COLUMNS = ("CPU us a request", "x nginx", "added p50 us", "x nginx", "bytes a held stream", "streams lost")


def compare(options: Namespace) -> tuple[Table, dict[str, Any]]:
    """For people, and as one JSON object."""
    names = ["router", *options.peers]
    rows = table(measure(names, options.requests, options.streams, options.rounds, options.work, tell))
    shown = Table("", *COLUMNS, box=None, header_style="bold")
    for row in rows:
        cpu, p50, held, lost = (
            str(row[name]) for name in ("cpu_us", "added_p50_us", "stream_bytes", "streams_lost")
        )
        shown.add_row(row["name"], cpu, _told(row["cpu_ratio"]), p50, _told(row["p50_ratio"]), held, lost)
    result = {"requests": options.requests, "streams": options.streams, "rows": rows}
    if options.rollbacks:
        took = rollback.measure(options.rollbacks, rollback.STREAMS, options.work / "rollback")
        result["rollback"] = asdict(took)
        for name, times in (("POST", took.post_ms), ("command", took.command_ms)):
            tell(
                f"rollback by {name}: {median(times):.1f} ms until an answer by the baseline (longest "
                f"{max(times):.1f} of {len(times)}), {took.streams_lost} of {took.streams} streams lost"
            )
    return shown, result


def _told(ratio: dict[str, float] | None) -> str:
    return f"{ratio['estimate']} ({ratio['low']} to {ratio['high']})" if ratio else "-"
