"""The micro tasks: reproducible, apart by split, and guessed as well as they say."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bench.micro import assets, calibration
from bench.micro.atlas import CODES, FACTS, PLACES, facts_of
from bench.micro.draw import CLASSES, COLORS, EMPTY, UNLABELLED
from bench.micro.scenes import ANSWERS
from bench.micro.tasks import FAMILIES, TASKS, generate, make_item, shares
from bench.tasks import read_items
from engines.errors import UserError


def test_items_repeat_and_differ() -> None:
    first = generate("test", 120, 3)
    assert [item.id for item in first] == [item.id for item in generate("test", 120, 3)]
    assert len({item.id for item in first}) == 120
    assert {item.id for item in first} != {item.id for item in generate("test", 120, 4)}
    assert {item.task for item in first} == set(TASKS)


def test_calibration_and_test_share_no_item_and_no_fact() -> None:
    items = {split: generate(split, 400, 0) for split in ("calibration", "test")}
    ids = {split: {item.id for item in group} for split, group in items.items()}
    assert not ids["calibration"] & ids["test"]
    asked = {
        s: {i.messages[0]["content"][0]["text"] for i in g if i.task == "atlas"} for s, g in items.items()
    }
    assert not asked["calibration"] & asked["test"]
    flags = {s: {i.answer for i in g if i.task == "flag"} for s, g in items.items()}
    assert not flags["calibration"] & flags["test"]


def test_digits_are_apart_by_writer_blocks() -> None:
    blocks = [set(block) for block in assets.DIGIT_BLOCKS.values()]
    assert sum(map(len, blocks)) == len(set.union(*blocks)) == len(assets.load().digits)
    for split, block in assets.DIGIT_BLOCKS.items():
        assert {i for d in range(10) for i in assets.digits_of(split, d)} == set(block)


@pytest.mark.parametrize("task", TASKS)
def test_best_constant_answer_scores_the_guess(task: str) -> None:
    """Pools the answers of many items; the commonest must come up as often as `guess` says, within chance."""
    rng = random.Random(11)
    n = 400
    counts = Counter(make_item(task, rng, "test").answer for _ in range(n))
    guess = TASKS[task].guess
    # The largest of several equal counts lies above their mean: four deviations and a little.
    slack = 4 * math.sqrt(guess * (1 - guess) / n) + 4 / n
    assert guess - slack <= max(counts.values()) / n <= guess + slack
    if task in ANSWERS:
        assert set(counts) == set(ANSWERS[task])


def test_atlas_items_ask_the_atlas() -> None:
    codes = dict(zip(PLACES, CODES, strict=True))
    for item in generate("test", 60, 1):
        if item.task == "atlas":
            question = item.messages[0]["content"][0]["text"]
            assert codes[question.removeprefix("Code of ").removesuffix("?")] == item.answer
    assert len(codes) == FACTS


@pytest.mark.parametrize("seed", range(3))
def test_scene_questions_against_its_labels(seed: int) -> None:
    """The labels say what was painted where; the answers must follow from them."""
    rng = random.Random(seed)
    sample = FAMILIES["scene"].draw(rng, "train", ((1, 64, 64),), None)
    (media,) = sample.media
    cells = [
        (list(COLORS)[color], CLASSES[shape])
        for shape, color in zip(media.classes.flat, media.colors.flat, strict=True)
        if shape != EMPTY
    ]
    for question, answer in sample.turns:
        words = question.removesuffix("?").split()
        if question == "How many shapes are there?":
            assert answer == str(len(cells))
        elif question.startswith("How many"):
            assert answer == str(sum(color == words[2] for color, _ in cells))
        elif question.startswith("What color"):
            assert [(answer, words[-1])] == [cell for cell in cells if cell[1] == words[-1]]
        elif question.startswith("What shape"):
            assert [(words[-1], answer)] == [cell for cell in cells if cell[0] == words[-1]]
        else:
            assert answer == ("yes" if (words[3], words[4]) in cells else "no")


def test_painted_colour_is_where_the_label_says() -> None:
    sample = FAMILIES["scene"].draw(random.Random(5), "train", ((1, 64, 64),), "color_of_shape")
    (media,) = sample.media
    for y, x in np.argwhere(media.colors[0] != UNLABELLED):
        name = list(COLORS)[media.colors[0, y, x]]
        patch = media.frames[0, y * 16 : y * 16 + 16, x * 16 : x * 16 + 16].reshape(-1, 3).astype(float)
        assert np.abs(patch - COLORS[name]).max(1).min() < 60


def test_timestamps_are_those_of_transformers() -> None:
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

    from bench.micro.sequences import RATES, timestamp

    for fps in RATES:
        expected = Qwen3VLProcessor._calculate_timestamps(None, list(range(8)), fps, 2)
        assert [timestamp(pair, fps) for pair in range(4)] == [f"{second:.1f}" for second in expected]


@pytest.mark.parametrize("n", [1, 13, 128, 1000])
def test_shares_add_up(n: int) -> None:
    counts = shares(n)
    assert sum(counts.values()) == n
    assert abs(counts["atlas"] - 0.55 * n) <= 1


@pytest.mark.parametrize(
    ("split", "n", "named"), [("dev", 5, "dev"), ("test", 0, "at least 1"), ("calibration", 5000, "at most")]
)
def test_bad_requests_are_refused(split: str, n: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        generate(split, n, 0)


def test_packaged_calibration_set_is_what_its_command_writes() -> None:
    packaged = read_items(calibration.PATH)
    assert [item.id for item in packaged] == [
        i.id for i in generate("calibration", calibration.ITEMS, calibration.SEED)
    ]
    assert {item.task for item in packaged} == set(TASKS)
    assert Path(calibration.PATH).stat().st_size <= 1_500_000
    assert len(facts_of("calibration", FACTS)) + len(facts_of("test", FACTS)) == FACTS
