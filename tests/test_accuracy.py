"""Answers are judged exactly, batching changes none, and scores follow from the counts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.accuracy import Observation, evaluate, guess_rate, read_observations, summarize, write_observations
from bench.micro.tasks import generate
from bench.tasks import Item
from engines.errors import UserError
from engines.generate import Completion
from engines.processor import Processor
from engines.reference import ReferenceSession
from engines.thoughts import answer as after_thoughts
from tests.conftest import ROOT
from tests.fakes import END, NumberProcessor, TableSession, chain

# 1 -> 2 -> 3 -> end; 4 goes round in circles.
SUCCESSORS = [END, 2, 3, END, 4]


def item(prompt: str, answer: str) -> Item:
    return Item.make("t", [{"role": "user", "content": prompt}], answer, 0.0)


def answer(items: list[Item], **settings: Any) -> tuple[list[Observation], TableSession]:
    session: Any = TableSession(chain(SUCCESSORS))
    processor: Any = NumberProcessor()
    return evaluate(session, processor, items, max_tokens=3, **{"batch_size": 2, **settings}), session


def test_answers_come_in_the_order_asked_and_are_judged_exactly() -> None:
    items = [item("4 4 4 1", "2 3"), item("2", " 3\n"), item("1 1", "2"), item("4", "4 4 4"), item("3", "")]
    found, _ = answer(items)
    assert [row.id for row in found] == [question.id for question in items]
    assert [row.text for row in found] == ["2 3", "3", "2 3", "4 4 4", ""]
    assert [row.correct for row in found] == [True, True, False, True, True]
    assert [row.token_ids for row in found] == [(2, 3, 0), (3, 0), (2, 3, 0), (4, 4, 4), (0,)]


def test_prompts_of_like_length_share_a_batch() -> None:
    _, session = answer([item("1 " * n, "2") for n in (9, 2, 5, 1, 8)], batch_size=2)
    assert session.batches == [[1, 2], [5, 8], [9]]


def test_an_item_of_several_rotations_is_one_and_right_only_if_all_are() -> None:
    """Right in all, wrong in the second, wrong in the first."""
    turned = [
        Item.make("t", [{"role": "user", "content": first}], '["3", "2 3"]', 0.0, "exact", (second,))
        for first, second in (("2", "1"), ("2", "3"), ("4", "1"))
    ]
    found, session = answer([item("3", ""), *turned], batch_size=1)
    assert [row.id for row in found[1:]] == [one.id for one in turned]
    assert [row.correct for row in found[1:]] == [True, False, False]
    assert [row.text for row in found] == ["", '["3", "2 3"]', '["3", ""]', '["4 4 4", "2 3"]']
    assert len(session.batches) == 7
    assert found[1].token_ids == (3, 0)  # of the first, which distributions are compared along


@pytest.mark.parametrize(
    ("text", "opened", "left"),
    [
        ("It is red, as I see.\n</think>\n\nRed", True, "Red"),
        ("<think>\nIs it red?\n</think>\n\nRed", False, "Red"),
        ("Red, I think. No: blue", True, ""),  # cut off before it came to an answer
        ("<think>\nRed", False, ""),
        ("Red", False, "Red"),
        (" 2 < 3", False, " 2 < 3"),
        ("a</think>b</think>", True, "b</think>"),
    ],
)
def test_thoughts_are_no_part_of_an_answer(text: str, opened: bool, left: str) -> None:
    assert after_thoughts(text, opened) == left


def test_a_thinking_checkpoint_is_scored_without_its_thoughts(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its template, which opens them; the same words by the other template are the answer."""
    template = ROOT / "tests" / "data" / "thinking_chat_template.jinja"
    shutil.copytree(micro_checkpoint, tmp_path / "thinking")
    shutil.copyfile(template, tmp_path / "thinking" / "chat_template.jinja")
    said = Completion("Blue? No.\n</think>\n\nRed", (7, 8, 9), 5, 3, 1.0, "stop", 1.0, 1.0, 3.0)
    monkeypatch.setattr("engines.generate.generate_batch", lambda session, processor, prompts, n: [said])
    session: Any = TableSession(chain(SUCCESSORS))
    turned = Item.make("t", [{"role": "user", "content": "?"}], '["A. Red"]', 0.0, "circular", ("??",))
    for folder, text, correct in (
        (tmp_path / "thinking", "Red", True),
        (micro_checkpoint, "Blue? No.\n</think>\n\nRed", False),
    ):
        asked = {"max_tokens": 9, "batch_size": 1}
        (found,) = evaluate(session, Processor.load(folder), [item("What colour?", "Red")], **asked)
        assert (found.text, found.correct, found.token_ids) == (text, correct, (7, 8, 9))
        (found,) = evaluate(session, Processor.load(folder), [turned], **asked)
        assert found.text == json.dumps([text, text])


def test_progress_counts_items() -> None:
    seen: list[tuple[int, int]] = []
    answer([item("1 " * n, "2") for n in (1, 2, 3)], progress=lambda *at: seen.append(at))
    assert seen == [(2, 3), (3, 3)]


def test_batched_equals_single_on_the_embedded_checkpoint(micro_checkpoint: Path) -> None:
    """In float32: in half precision a tie may fall either way with the shape of the batch."""
    items = generate("test", 24, 5)
    session = ReferenceSession(micro_checkpoint, dtype="float32", threads=1)
    processor = Processor.load(micro_checkpoint)
    single, batched = (evaluate(session, processor, items, max_tokens=8, batch_size=size) for size in (1, 12))
    assert single == batched
    assert len({row.text for row in single}) > 8


def observation(task: str, answer: str, correct: bool, guess: float = 0.0) -> Observation:
    return Observation("", task, answer, "", correct, guess, (), float(correct))


def test_scores_by_hand() -> None:
    """Task a: 3 of 4 right, "x" is the answer of 2 of the 3 others. Task b: 1 of 2 right, chance 0.5."""
    rows = [observation("a", "x", i > 0) for i in range(3)] + [observation("a", "y", True)]
    rows += [observation("b", word, word == "p", 0.5) for word in ("p", "q")]
    a, b, everything = summarize(rows)
    assert (a.task, a.n, a.accuracy, a.guess) == ("a", 4, 0.75, pytest.approx(2 / 3))
    assert a.standard_error == pytest.approx((0.75 * 0.25 / 4) ** 0.5)
    assert a.low < 0.75 < a.high < 1
    assert (b.accuracy, b.guess) == (0.5, 0.5)
    assert (everything.n, everything.accuracy) == (6, pytest.approx(4 / 6))
    assert everything.guess == pytest.approx((4 * 2 / 3 + 2 * 0.5) / 6)


def test_parts_follow_their_task_and_count_once_in_all() -> None:
    rows = [observation(task, str(i), task != "a/2") for i, task in enumerate(("b", "a/2", "a/1", "a/2"))]
    told = [(score.task, score.n, score.accuracy) for score in summarize(rows)]
    assert told == [
        ("b", 1, 1),
        ("a", 3, pytest.approx(1 / 3)),
        ("a/1", 1, 1),
        ("a/2", 2, 0),
        ("all", 4, 0.5),
    ]


def test_a_single_or_ever_different_answer_is_no_guess() -> None:
    assert guess_rate([observation("a", "x", True)]) == 0
    assert guess_rate([observation("a", word, True) for word in "pqrs"]) == 0
    assert guess_rate([observation("a", "x", True) for _ in range(5)]) == 1


def test_observations_come_back(tmp_path: Path) -> None:
    rows = [Observation("id", "t", "中\u2028", "a\nb", True, 0.25, (1, 2), 0.75), observation("u", "", False)]
    write_observations(tmp_path / "o.jsonl", rows)
    assert read_observations(tmp_path / "o.jsonl") == rows


def test_a_malformed_observation_is_named(tmp_path: Path) -> None:
    write_observations(tmp_path / "o.jsonl", [observation("t", "", True)])
    with (tmp_path / "o.jsonl").open("a") as file:
        file.write('{"id": "x", "task": 3}\n')
    with pytest.raises(UserError, match=r"o\.jsonl:2: task"):
        read_observations(tmp_path / "o.jsonl")
    with pytest.raises(UserError, match="cannot read"):
        read_observations(tmp_path / "none.jsonl")
