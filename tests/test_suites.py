"""Generated suites: equal bits for equal seeds in any process, answers that follow from what was drawn."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.accuracy import Observation, guess_rate
from bench.scoring import METRICS, SECONDS, score
from bench.suites import documents, ocr, photos, pictures, prose, structure, text, video
from bench.suites.catalogue import SUITES, load_suite, suite_files, suite_packages
from bench.suites.drawing import DAMAGE, font
from bench.tasks import Item, item_id, read_items, write_items
from engines.chat import ChatTemplate
from engines.errors import UserError

ALL = SUITES["mixed"]


def pictures_of(item: Item) -> list[Image.Image]:
    parts = [part for message in item.messages for part in message["content"] if isinstance(part, dict)]
    shown = [part["image"] for part in parts if part["type"] == "image"]
    return shown + [frame for part in parts if part["type"] == "video" for frame in part["video"]]


def question(item: Item) -> str:
    content = item.messages[-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


@pytest.mark.parametrize("task", ALL)
def test_the_right_answer_scores_one_and_nonsense_nothing(task: str) -> None:
    for i in range(3):
        item = ALL[task](random.Random(i))
        said = item.answer
        if item.metric == "tool_call":
            said = f"<tool_call>\n{said}\n</tool_call>"
        assert item.task.partition("/")[0] == task
        assert item.metric in METRICS
        assert score(item.metric, said, item.answer) == 1
        for wrong in ("", "I cannot tell.", "]"):
            assert score(item.metric, wrong, item.answer) <= (0.3 if item.metric == "characters" else 0)


@pytest.mark.parametrize("suite", SUITES)
def test_items_are_even_different_and_a_beginning_of_more(suite: str) -> None:
    n = len(SUITES[suite])
    items = load_suite(suite, n, 3)
    assert len({item.id for item in items}) == n
    assert set(Counter(item.task.partition("/")[0] for item in items).values()) == {1}
    assert {item.id for item in items} <= {item.id for item in load_suite(suite, 2 * n, 3)}
    assert {item.id for item in load_suite(suite, n, 4)}.isdisjoint(item.id for item in items)


def test_generation_is_the_same_in_another_process() -> None:
    """Ids hash every pixel, question and answer."""
    script = (
        "from bench.suites.catalogue import load_suite\nprint(*(x.id for x in load_suite('mixed', 40, 7)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.split() == [item.id for item in load_suite("mixed", 40, 7)]


def test_items_survive_their_file(tmp_path: Path) -> None:
    items = load_suite("mixed", len(ALL), 0)
    write_items(tmp_path / "items.jsonl", items)
    read = read_items(tmp_path / "items.jsonl")
    assert [(x.id, x.metric, x.answer) for x in read] == [(x.id, x.metric, x.answer) for x in items]
    line = json.loads((tmp_path / "items.jsonl").read_text().splitlines()[0])
    line["metric"] = "magic"
    (tmp_path / "bad.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match=r"bad\.jsonl:1: 'metric' is 'magic'"):
        read_items(tmp_path / "bad.jsonl")


def test_the_metric_is_part_of_an_item() -> None:
    messages = [{"role": "user", "content": "?"}]
    assert (
        item_id("t", messages, "7")
        == item_id("t", messages, "7", "exact")
        != item_id("t", messages, "7", "count")
    )


@pytest.mark.parametrize(
    "task", [task for task, make in ALL.items() if make(random.Random(0)).metric in ("choice", "words")]
)
def test_guesses_are_those_of_a_constant_answer(task: str) -> None:
    """The share of the commonest answer among many is the item's guess, but for chance."""
    n = 40
    items = [ALL[task](random.Random(f"g{i}")) for i in range(n)]
    told = [Observation("", task, item.answer, "", False, 0.0, (), 0.0) for item in items]
    assert guess_rate(told) <= items[0].guess + 4 * (items[0].guess * (1 - items[0].guess) / n) ** 0.5 + 0.05


def test_no_constant_beats_the_guess_of_a_time() -> None:
    items = [video.when(random.Random(i)) for i in range(100)]
    best = max(np.mean([score("seconds", str(s), item.answer) for item in items]) for s in range(9))
    assert best == pytest.approx(video.GUESS, abs=0.1)
    assert score("seconds", "3", "4") == 1 - 1 / SECONDS


@pytest.mark.parametrize("seed", range(4))
def test_boxes_hold_the_ink(seed: int) -> None:
    """The ink of the named colour lies in the box, to a pixel, and reaches each of its four sides."""
    item = pictures.grounding(random.Random(seed))
    (picture,) = pictures_of(item)
    color = question(item).removeprefix("Locate the ").split()[0]
    near = np.abs(np.asarray(picture, int) - np.array(pictures.COLORS[color])).max(axis=2) <= 18
    left, top, right, bottom = (
        v * side / 1000 for v, side in zip(json.loads(item.answer), picture.size * 2, strict=True)
    )
    inside = np.zeros_like(near)
    inside[int(top) - 2 : int(bottom) + 3, int(left) - 2 : int(right) + 3] = True
    ys, xs = np.nonzero(near & inside)
    assert (near & ~inside).sum() < 0.03 * near.sum() + 5
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == pytest.approx((left, top, right, bottom), abs=4)


@pytest.mark.parametrize("seed", range(12))
def test_relations_follow_from_the_places(seed: int) -> None:
    item = pictures.relation(random.Random(seed))
    (picture,) = pictures_of(item)
    one, other = (
        name.split()[0]
        for name in question(item).removeprefix("Where is the ").split("?")[0].split(", seen from the ")
    )
    centre = {}
    for color in (one, other):
        near = np.abs(np.asarray(picture, int) - np.array(pictures.COLORS[color])).max(axis=2) <= 16
        centre[color] = np.median(np.argwhere(near), axis=0)
    dy, dx = centre[one] - centre[other]
    assert item.answer == (
        ("left", "right")[int(dx > 0)] if abs(dx) > abs(dy) else ("above", "below")[int(dy > 0)]
    )


@pytest.mark.parametrize("seed", range(8))
def test_one_sentence_is_true(seed: int) -> None:
    """Seen again by its colours: each kind is painted where its colour is."""
    item = pictures.match(random.Random(seed))
    options = dict(line.split(". ", 1) for line in question(item).splitlines()[1:5])
    assert len(set(options.values())) == 4
    rng = random.Random(seed)
    names = {f"{color} {kind}" for color, kind in pictures.different(rng, 4)}
    true = {
        letter
        for letter, said in options.items()
        if set(said.removeprefix("There is a ").removesuffix(".").split(" and a ")) <= names
    }
    assert true == {item.answer}


def test_absent_things_are_absent_half_of_the_time() -> None:
    items = [pictures.absent(random.Random(i)) for i in range(60)]
    assert 18 <= sum(item.answer == "none" for item in items) <= 42


def test_a_town_that_is_not_in_the_table_is_answered_with_none() -> None:
    """The table has every town but, half of the time, the one that is asked for."""
    gone = 0
    for seed in range(16):
        rng = random.Random(seed)
        towns = {town for town, _ in documents._ruled(rng)[1]}
        item = documents.missing(random.Random(seed))
        asked = question(item).split(" in ", 1)[1].split("?")[0]
        assert (item.answer == "none") == (asked not in towns)
        gone += item.answer == "none"
    assert 3 <= gone <= 13


@pytest.mark.parametrize("script", ocr.SCRIPTS)
def test_every_character_has_a_glyph(script: str) -> None:
    """A missing one is drawn as the font's box, the same for all of them."""
    for face in ocr.FACES.get(script, (script,)):
        letters = {c for column in ocr.SCRIPTS[script] for phrase in column for c in phrase} - set(" {}")
        missing = bytes(font(face, 40).getmask("\U0010fffe"))
        assert not [c for c in letters if bytes(font(face, 40).getmask(c)) == missing]


def test_arabic_is_joined_and_runs_from_right_to_left() -> None:
    """A joined word is not its letters side by side."""
    face = font("arabic", 40)
    word = "الشاي"
    assert face.getlength(word) < 0.95 * sum(face.getlength(letter) for letter in word)
    alone = np.asarray(face.getmask(word[0]).getbbox())
    mask = face.getmask(word)
    ink = np.asarray(mask).reshape(mask.size[::-1])
    assert ink[:, -alone[2] :].any()
    assert (
        np.nonzero(ink[:, -6:].any(axis=1))[0].size > 15
    )  # alef, a tall stroke, comes first: at the right end


def test_every_level_of_damage_is_a_part_of_its_task() -> None:
    """And the picture's: the same text is drawn again, and damaged as the task says."""
    seen = set()
    for seed in range(24):
        item = ocr.damaged(random.Random(seed), "blur")
        task, level = item.task.split("/")
        rng = random.Random(seed)
        script, _ = rng.choice(list(ocr.SCRIPTS)), rng.randrange(ocr.LEVELS)
        sheet = ocr.printed(rng, script, ocr.text(rng, script, rng.randint(1, 3)))
        (picture,) = pictures_of(item)
        assert picture.tobytes() == DAMAGE["blur"](sheet, rng, int(level) - 1).tobytes()
        seen.add((task, level))
    assert seen == {("ocr-blur", "1"), ("ocr-blur", "2"), ("ocr-blur", "3")}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_grows_with_its_level(damage: str) -> None:
    sheet = ocr.printed(random.Random(1), "latin", ["The old harbour sold 3 boxes of jam"])
    levels = [DAMAGE[damage](sheet, random.Random(2), level) for level in range(ocr.LEVELS)]
    if damage == "rotation":
        assert [picture.height for picture in levels] == sorted(picture.height for picture in levels)
        return
    away = [float(np.abs(np.asarray(p, float) - np.asarray(sheet, float)).mean()) for p in levels]
    assert 0 < away[0] < away[1] < away[2]


def test_receipts_add_up() -> None:
    for seed in range(20):
        answer = json.loads(documents.receipt(random.Random(seed)).answer)
        assert answer["total"] == pytest.approx(
            sum(x["quantity"] * x["price"] for x in answer["items"]), abs=0.005
        )


def test_bars_are_as_high_as_they_say() -> None:
    """The bar of the asked month, measured against the axis in pixels."""
    checked = 0
    for seed in range(12):
        item = documents.chart(random.Random(seed))
        (picture,) = pictures_of(item)
        pixels = np.asarray(picture, int)
        tint = next((t for t in documents.TINTS if (np.abs(pixels - t).max(axis=2) == 0).any()), None)
        assert tint is not None
        ink = np.abs(pixels - tint).max(axis=2) == 0
        columns = ink.any(axis=0)
        widths = np.diff(np.nonzero(np.diff(np.r_[0, columns, 0].astype(int)))[0])[::2]
        if len(widths) < 5:  # a line
            continue
        starts = np.nonzero(np.diff(np.r_[0, columns, 0].astype(int)))[0][::2]
        heights = [int(ink[:, s + 2].sum()) for s in starts]
        value, steps = float(item.answer), (10, 20, 50, 100, 250)
        scale = [h / ((410 - 76) / (step * 5)) for step in steps for h in heights]
        assert min(abs(found - value) for found in scale) <= 0.02 * value + 0.4 * max(steps) / 60
        checked += 1
    assert checked >= 3


def test_needles_are_told_once_among_others() -> None:
    for seed in range(5):
        item = text.one_needle(random.Random(seed), "needle-1k", 1000)
        asked = question(item)
        assert asked.count(item.answer) == 1
        assert asked.count("access code of") == 2 + text.DECOYS
        assert 0.9 < len(asked) / prose.CHARACTERS_PER_TOKEN / 1000 < 1.2


@pytest.mark.parametrize("kind", ["needle", "needles", "extract"])
def test_texts_of_any_length(kind: str) -> None:
    """The answer is told wherever in the text, and once."""
    short, long = (load_suite(f"{kind}-{n}k", 1, 0)[0] for n in (2, 64))
    assert long.task == f"{kind}-64k"
    assert 26 < len(question(long)) / len(question(short)) < 33
    wanted = json.loads(long.answer) if kind == "needles" else [long.answer]
    told = [question(long).index(one) / len(question(long)) for one in wanted]
    assert all(question(long).count(one) == 1 for one in wanted) or kind == "extract"
    assert max(told) < 0.999
    assert score(long.metric, ", ".join(wanted), long.answer) == 1


def test_pages_of_any_number() -> None:
    many = load_suite("pages-9", 2, 0)
    assert {item.task for item in many} == {"pages-9"}
    assert [len(pictures_of(item)) for item in many] == [9, 9]
    assert len({picture.tobytes() for picture in pictures_of(many[0])}) == 9
    assert suite_packages("pages-9") == suite_packages("documents")


def test_memory_is_told_in_an_early_turn_only() -> None:
    for seed in range(10):
        item = text.memory(random.Random(seed))
        early, late = item.messages[:6], item.messages[6:]
        assert sum(item.answer in message["content"] for message in early) == 1
        assert not any(item.answer in message["content"] for message in late)


def test_tools_are_told_as_the_chat_template_tells_them(tmp_path: Path) -> None:
    """Held to Qwen's own template."""
    shutil.copy(Path(__file__).parent / "data/qwen3_vl_chat_template.jinja", tmp_path / "chat_template.jinja")
    template = ChatTemplate.load(tmp_path)
    item = structure.tool(random.Random(0))
    plain: list[dict[str, Any]] = [{"role": "user", "content": question(item)}]
    told = [{"role": "system", "content": item.messages[0]["content"]}, *plain]
    assert template.render(told) == template.render(plain, tools=structure.TOOLS)


def test_videos_change_when_they_say() -> None:
    for seed in range(6):
        item = video.when(random.Random(seed))
        frames = [np.asarray(frame, int) for frame in pictures_of(item)]
        changed = [i / video.FPS for i in range(1, len(frames)) if (frames[i] != frames[i - 1]).any()]
        assert float(item.answer) in changed


def test_photographs_are_those_of_the_data_sets() -> None:
    items = load_suite("photos", 12, 0)
    assert {item.task for item in items} == set(photos.TASKS)


def test_pictures_have_the_sizes_of_real_ones() -> None:
    for make in ALL.values():
        for picture in pictures_of(make(random.Random(5))):
            assert picture.mode == "RGB"
            assert 200 * 150 <= picture.width * picture.height <= 1280 * 1280


@pytest.mark.parametrize(
    "suite", ["macro", "needle-0k", "needle-k", "pages-0", "pages-4k", "memory-4k", "docvqa", "photos:x"]
)
def test_unknown_suites_are_refused(suite: str) -> None:
    with pytest.raises(UserError, match="expected one of micro, pictures, ocr"):
        load_suite(suite, 1, 0)


def test_what_a_suite_depends_on(tmp_path: Path) -> None:
    assert suite_files("mixed") == suite_files("needles-8k") == suite_files("pages-9") == []
    assert suite_files("items.jsonl") == [Path("items.jsonl")]
    assert suite_packages("micro") == ()
    assert "noto-cjk-sans-otc" in suite_packages("ocr")
