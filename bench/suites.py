"""Evaluation suites by name: generated ones, or a file of items."""

from __future__ import annotations

from pathlib import Path

from bench.micro.tasks import generate
from bench.tasks import Item, read_items
from engines.errors import UserError


def load_suite(suite: str, n: int, seed: int) -> list[Item]:
    """``micro`` generates ``n`` held-out items from ``seed``; a path reads that many of a JSONL file."""
    if suite == "micro":
        return generate("test", n, seed)
    path = Path(suite)
    if not path.is_file():
        raise UserError(f"no suite {suite!r}: expected micro, or a JSONL file of items")
    return read_items(path)[:n]
