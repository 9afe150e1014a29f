"""`bench trust` on the command line."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path

from rich.console import Console

from bench.tables import tell
from bench.trust.run import Settings, run
from bench.trust.table import fault_table, problems, rate_table
from engines.errors import UserError

CHECKPOINT = Path(__file__).resolve().parent.parent / "micro" / "checkpoint"


def trust(options: Namespace) -> int:
    """Two tables, and what is not kept on stderr; 3 when there is such."""
    margins, ratio = (options.accuracy_margin, options.slice_margin), options.latency_ratio
    if not all(0 < margin < 50 for margin in margins) or ratio <= 1:
        raise UserError(
            f"margins of {margins[0]:g} and {margins[1]:g} points, a ratio of {ratio:g}: "
            "expected margins between 0 and 50 and a ratio above 1"
        )
    settings = Settings(
        draws=options.draws,
        items=options.items,
        pool=options.pool,
        processes=options.processes,
        margin=margins[0],
        slice_margin=margins[1],
        latency_ratio=ratio,
        seed=options.seed,
        threads=options.threads,
    )
    found = run(CHECKPOINT, settings, tell)
    if options.json:
        print(json.dumps(found.document()))
    else:
        console = Console(width=None if sys.stdout.isatty() else 180)
        console.print(rate_table(found))
        console.print()
        console.print(fault_table(found))
    for line in problems(found):
        tell(line)
    return 0 if found.held else 3
