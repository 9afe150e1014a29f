"""An item that does not fit is refused in one line before anything is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import main
from bench.accuracy import evaluate
from bench.context import check_context
from bench.tasks import Item, write_items
from build.measuring import items
from build.recipe import load_recipe
from build.source import resolve
from build.stages import checkpoint
from build.store import Store
from engines.errors import UserError
from tests.fakes import END, NumberProcessor, TableSession, chain


def asked(words: int, task: str = "t") -> Item:
    return Item.make(task, [{"role": "user", "content": " ".join(["1"] * words)}], "2", 0.0)


@pytest.mark.parametrize(
    ("lengths", "told"),
    [
        ([5, 90, 3], None),
        (
            [5, 91, 3],
            "of b has 91 tokens, 101 with its answer: the context is 100; allow answers of 9 tokens at most",
        ),
        (
            [95, 3, 120],
            r"of c \(and 1 more\) has 120 tokens, 130 with its answer: the context is 100; take a shorter",
        ),
    ],
)
def test_the_longest_item_is_named_with_what_to_do(lengths: list[int], told: str | None) -> None:
    given = [asked(n, task) for n, task in zip(lengths, "abc", strict=True)]
    if told is None:
        check_context(given, lengths, 10, 100)
    else:
        with pytest.raises(UserError, match=told):
            check_context(given, lengths, 10, 100)


@pytest.mark.parametrize(("built_for", "limit"), [(None, "10,000"), (50, "50")])
def test_nothing_is_asked_where_one_item_does_not_fit(built_for: int | None, limit: str) -> None:
    """The model's context, or the shorter one that engines were built for."""
    session: Any = TableSession(chain([END, END]))
    session.context = built_for
    processor: Any = NumberProcessor()
    words = int(limit.replace(",", "")) - 2
    with pytest.raises(UserError, match=f"has {words:,} tokens.*the context is {limit};"):
        evaluate(session, processor, [asked(1), asked(words)], max_tokens=3, batch_size=2)
    assert not session.batches
    assert len(evaluate(session, processor, [asked(1), asked(words)], max_tokens=2, batch_size=2)) == 2


def test_a_suite_too_long_for_the_embedded_checkpoint(
    micro_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["accuracy", str(micro_checkpoint), "--suite", "needle-4k", "--items", "1"]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: item ")
    assert "of needle-4k has" in line
    assert "the context is 4,096; take a shorter suite or drop it" in line
    assert "\n" not in line


def test_a_build_refuses_it_before_it_converts_anything(tmp_path: Path) -> None:
    write_items(tmp_path / "long.jsonl", [asked(9000)])
    suite = json.dumps(str(tmp_path / "long.jsonl"))
    recipe = load_recipe("micro", overrides=[f"evaluate.suite={suite}"])
    store, source = Store(tmp_path / "store", lambda text: None), resolve(recipe.model)
    base = store.do(*checkpoint(source))
    with pytest.raises(UserError, match="the context is 4,096"):
        store.do(*items(recipe.evaluate, recipe.quantize, base))
