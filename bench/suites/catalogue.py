"""Evaluation suites by name: generated ones, public benchmarks in a folder, or a file of items."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.micro import tasks as micro
from bench.suites import documents, ocr, photos, pictures, structure, text, video
from bench.suites.items import Make, draw
from bench.suites.public import BENCHMARKS, Draft, question_files
from bench.tasks import Item, read_items
from engines.errors import UserError

SUITES: dict[str, dict[str, Make]] = {
    "pictures": pictures.TASKS,
    "ocr": ocr.TASKS,
    "documents": documents.TASKS,
    "text": text.TASKS,
    "structure": structure.TASKS,
    "video": video.TASKS,
    "photos": photos.TASKS,
}
SUITES["mixed"] = {task: make for tasks in SUITES.values() for task, make in tasks.items()}
LONG = re.compile(r"(needle|needles|extract)-([1-9]\d{0,3})k")
PAGES = re.compile(r"pages-([1-9]\d{0,2})")


def load_suite(suite: str, n: int, seed: int) -> list[Item]:
    """`n` items: generated from the seed, drawn by it from a public benchmark, or the first of a JSONL file.

    `suite` is `micro`, a name in SUITES, `needle-Nk`, `needles-Nk` or `extract-Nk` for N thousand tokens,
    `pages-N` for N pages, `BENCHMARK:DIR`, or a path. Raises UserError for anything else, and for a folder or
    file that is not what its name says.
    """
    if suite == "micro":
        return micro.generate("test", n, seed)
    if suite in SUITES:
        return draw(SUITES[suite], seed, n)
    if found := LONG.fullmatch(suite):
        return draw({suite: text.long_task(found[1], int(found[2]))}, seed, n)
    if found := PAGES.fullmatch(suite):
        return draw({suite: partial(documents.pages, task=suite, count=int(found[1]))}, seed, n)
    benchmark, colon, folder = suite.partition(":")
    if colon and benchmark in BENCHMARKS:
        return [Item.make(*draft) for draft in _some(BENCHMARKS[benchmark], Path(folder), n, seed)]
    path = Path(suite)
    if not path.is_file():
        raise UserError(
            f"no suite {suite!r}: expected one of micro, {', '.join(SUITES)}, needle-Nk, needles-Nk, "
            f"extract-Nk, pages-N, a JSONL file, or BENCHMARK:DIR with one of {', '.join(BENCHMARKS)}"
        )
    return read_items(path)[:n]


def suite_files(suite: str) -> list[Path]:
    """The files that say what a suite's items are; none if they are generated."""
    if suite == "micro" or suite in SUITES or LONG.fullmatch(suite) or PAGES.fullmatch(suite):
        return []
    benchmark, colon, folder = suite.partition(":")
    return question_files(benchmark, Path(folder)) if colon and benchmark in BENCHMARKS else [Path(suite)]


def suite_packages(suite: str) -> tuple[str, ...]:
    """What generated pictures look like depends on the packages of fonts and photographs too."""
    fonts, photographs = ("matplotlib", "noto-cjk-sans-otc"), ("scikit-image", "scikit-learn")
    suite = "documents" if PAGES.fullmatch(suite) else suite
    return {"ocr": fonts, "documents": fonts, "photos": photographs, "mixed": (*fonts, *photographs)}.get(
        suite, ()
    )


def _some(read: Callable[[Path], list[Draft]], folder: Path, n: int, seed: int) -> list[Draft]:
    """In the order of the benchmark, whose first are not like its last."""
    try:
        drafts = read(folder)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{folder} is not laid out as published: {type(error).__name__} {error}") from None
    if len(drafts) <= n:
        return drafts
    return [drafts[i] for i in sorted(random.Random(seed).sample(range(len(drafts)), n))]
