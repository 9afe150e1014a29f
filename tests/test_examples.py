"""Examples of changed answers: chosen alike every time, the losses first, pictures few and small."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path

import pytest
from PIL import Image

from bench.accuracy import Observation
from bench.examples import MOST, PICTURES, SIDE, Answer, choose, show
from bench.suites.documents import pages
from bench.suites.video import when
from bench.tasks import Item, find_items, read_items, write_items


def said(scores: str, text: str = "x", tasks: int = 2) -> list[Observation]:
    """One answer for each digit, the score being so many tenths."""
    return [
        Observation(f"{i:02}", f"t{i % tasks}", "a", text, int(c) == 9, 0.0, (1,), int(c) / 9)
        for i, c in enumerate(scores)
    ]


def test_what_most_variants_lose_comes_first_and_every_task_has_its_turn() -> None:
    answers = {"fp16": said("999900"), "a": said("909009"), "b": said("900000")}
    chosen = choose("fp16", answers)
    assert [one for one, _ in chosen] == ["01", "02", "03", "05"]  # t1, t0, t1 again; the last is won
    told = dict(chosen)
    assert [answer.names for answer in told["01"]] == [("fp16",), ("a", "b")]
    assert [answer.names for answer in told["02"]] == [("fp16",), ("b",)]
    assert told["05"][1] == Answer(("a",), "x", 1.0, True)


def test_answers_that_are_worth_the_same_are_no_example() -> None:
    assert choose("fp16", {"fp16": said("9900", "x"), "a": said("9900", "y")}) == []
    assert choose("fp16", {"fp16": []}) == []
    assert choose("fp16", {"fp16": said("99"), "trt": []}) == []


def test_there_are_few_of_them() -> None:
    chosen = choose("fp16", {"fp16": said("9" * 40 + "0" * 9), "a": said("0" * 40 + "9" * 9)})
    assert len(chosen) == MOST
    assert chosen[-1][0] == "40"


@pytest.mark.parametrize("make", [pages, when])
def test_pictures_are_reduced_and_survive_the_file(make: object, tmp_path: Path) -> None:
    items = [make(random.Random(i)) for i in range(2)]  # type: ignore[operator]
    write_items(tmp_path / "items.jsonl", items)
    wanted = [items[0].id]
    found = find_items(tmp_path / "items.jsonl", wanted)
    assert {one: item.messages for one, item in found.items()} == {
        item.id: item.messages for item in read_items(tmp_path / "items.jsonl") if item.id in wanted
    }
    (example,) = show([(items[0].id, [Answer(("fp16",), "7", 1.0, True)]), ("unknown", [])], found)
    assert len(example.pictures) == PICTURES
    assert example.question.endswith("only.")
    for uri in example.pictures:
        data = base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))
        assert max(Image.open(io.BytesIO(data)).size) == SIDE
    assert sum(map(len, example.pictures)) < 150_000
    assert example.more_pictures == (0 if make is pages else 12)


def test_small_pictures_stay_as_they_are() -> None:
    picture = Image.effect_noise((48, 32), 60).convert("RGB")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "word " * 200 + "what?"}]
    item = Item.make("t", [{"role": "user", "content": content}], "a", 0.0)
    (example,) = show([(item.id, [])], {item.id: item})
    data = base64.b64decode(example.pictures[0].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).tobytes() == picture.tobytes()
    assert example.small
    assert len(example.question) < 250
    assert example.question.startswith("word word")
    assert example.question.endswith("what?")
