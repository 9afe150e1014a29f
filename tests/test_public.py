"""Public benchmarks in small folders laid out as their authors publish them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.scoring import score
from bench.suites.catalogue import load_suite, suite_files
from bench.tasks import Item, read_items, write_items
from engines.errors import UserError


def picture(path: Path, shade: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (shade, 120, 200)).save(path)


def encoded(shade: int, size: int = 60) -> str:
    buffer = io.BytesIO()
    Image.effect_noise((size, size), shade).convert("RGB").save(buffer, "JPEG")
    return base64.b64encode(buffer.getvalue()).decode()


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")


def ocrbench(folder: Path) -> None:
    rows = [
        ("IIIT5K", "Regular Text Recognition", "what is written in the image?", ["CENTRE"], "IIIT5K/1.png"),
        (
            "HME100k",
            "Handwritten Mathematical Expression Recognition",
            "Please write out the expression",
            ["x ^ 2"],
            "HME/2.jpg",
        ),
        ("docVQA", "Doc-oriented VQA", "what is the date?", "May 5", "docVQA/3.png"),
    ]
    keys = ("dataset_name", "type", "question", "answers", "image_path")
    write(
        folder / "OCRBench/OCRBench.json",
        [{"id": i, **dict(zip(keys, row, strict=True))} for i, row in enumerate(rows)],
    )
    for row in rows:
        picture(folder / "OCRBench_Images" / row[-1])


def docvqa(folder: Path) -> None:
    row = {
        "questionId": 1,
        "question": "Who wrote it?",
        "image": "documents/a_1.png",
        "docId": 7,
        "answers": ["J. Doe", "John Doe"],
    }
    write(folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": [row]})
    picture(folder / "documents/a_1.png")


def chartqa(folder: Path) -> None:
    write(folder / "test/test_human.json", [{"imgname": "1.png", "query": "How many?", "label": "14"}])
    write(
        folder / "test/test_augmented.json", [{"imgname": "2.png", "query": "Which year?", "label": "Norway"}]
    )
    picture(folder / "test/png/1.png")
    picture(folder / "test/png/2.png", 10)


def textvqa(folder: Path) -> None:
    row = {
        "question_id": 1,
        "image_id": "abc",
        "question": "what brand?",
        "answers": ["nokia"] * 8 + ["Nokia!", "phone"],
    }
    write(folder / "TextVQA_0.5.1_val.json", {"data": [row]})
    picture(folder / "train_images/abc.jpg")


def ai2d(folder: Path) -> None:
    write(folder / "ai2d_test_ids.csv", "5\n77\n")
    asked = {
        "What eats the frog?": {
            "abcLabel": False,
            "answerTexts": ["snake", "grass", "sun", "fly"],
            "correctAnswer": 0,
        },
        "What is A?": {"abcLabel": True, "answerTexts": ["stem", "root", "leaf", "bud"], "correctAnswer": 2},
    }
    write(folder / "questions/5.png.json", {"imageName": "5.png", "questions": asked})
    write(folder / "questions/6.png.json", {"imageName": "6.png", "questions": asked})  # a training diagram
    label = {"rectangle": [[4, 4], [30, 20]], "replacementText": "A", "value": "leaf"}
    write(folder / "annotations/5.png.json", {"text": {"T1": label}})
    picture(folder / "images/5.png")


def mmmu(folder: Path) -> None:
    one, two = encoded(10), encoded(50)
    rows = [
        ["1", "Compare <image 1> with <image 2>.", "left", "right", "", "B", "Art", f"['{one}', '{two}']"],
        ["2", "What is <image 1>?", "", "", "", "harp", "Music", one],
    ]
    table = [["index", "question", "A", "B", "C", "answer", "category", "image"], *rows]
    write(folder / "MMMU_DEV_VAL.tsv", "\n".join("\t".join(row) for row in table) + "\n")


def mmbench(folder: Path) -> None:
    rows = [
        [
            "1",
            "Which is larger?",
            "Look closely.",
            "cat",
            "dog",
            "",
            "B",
            "attribute_comparison",
            encoded(30),
        ],
        ["1000001", "Which is larger?", "Look closely.", "dog", "cat", "", "A", "attribute_comparison", "1"],
        ["2", "What is it?", "", "a", "b", "c", "C", "object", "1"],
    ]
    table = [["index", "question", "hint", "A", "B", "C", "answer", "category", "image"], *rows]
    write(folder / "MMBench_DEV_EN.tsv", "\n".join("\t".join(row) for row in table) + "\n")


MADE = {f.__name__: f for f in (ocrbench, docvqa, chartqa, textvqa, ai2d, mmmu, mmbench)}


def load(name: str, folder: Path, n: int = 99) -> list[Item]:
    MADE[name](folder)
    return load_suite(f"{name}:{folder}", n, 0)


@pytest.mark.parametrize(
    ("name", "tasks", "said"),
    [
        (
            "ocrbench",
            [
                "regular-text-recognition",
                "handwritten-mathematical-expression-recognition",
                "doc-oriented-vqa",
            ],
            {"it says centre": 1, "x^2": 1, "on MAY 5, 1990": 1},
        ),
        ("docvqa", [""], {"john doe": 1}),
        ("chartqa", ["human", "augmented"], {"14.5": 1, "norway": 1}),
        ("textvqa", [""], {"Nokia": 1}),
        ("ai2d", ["", ""], {"A": 1, "C. leaf": 1}),
        ("mmmu", ["", ""], {"B": 1, "Harp.": 1}),
        ("mmbench", ["attribute-comparison", "object"], {'["(B)", "A"]': 1, '["C", "B", "A"]': 1}),
    ],
)
def test_a_benchmark_is_read_and_scored(
    name: str, tasks: list[str], said: dict[str, float], tmp_path: Path
) -> None:
    items = load(name, tmp_path)
    assert [item.task for item in items] == [f"{name}-{task}" if task else name for task in tasks]
    for item, (text, expected) in zip(items, said.items(), strict=True):
        assert score(item.metric, text, item.answer) == pytest.approx(expected)
        assert score(item.metric, "zebra crossing", item.answer) == 0
    write_items(tmp_path / "items.jsonl", items)  # with every picture in it
    assert [item.id for item in read_items(tmp_path / "items.jsonl")] == [item.id for item in items]
    assert all(path.is_file() for path in suite_files(f"{name}:{tmp_path}"))


def test_mmmu_pictures_stand_where_the_question_names_them(tmp_path: Path) -> None:
    content = load("mmmu", tmp_path)[0].messages[0]["content"]
    assert [part["type"] for part in content] == ["text", "image", "text", "image", "text"]
    assert content[1] != content[3]


def test_mmbench_rows_may_share_a_picture(tmp_path: Path) -> None:
    first, second = (item.messages[0]["content"][0] for item in load("mmbench", tmp_path))
    assert first == second
    assert first["type"] == "image"


def test_mmbench_asks_with_its_choices_rotated_and_is_right_only_if_all_are(tmp_path: Path) -> None:
    """The published file's own rotations (numbers from a million on) ask what is asked already."""
    two, three = load("mmbench", tmp_path)
    asked = [conversation[-1]["content"] for conversation in three.conversations]
    assert [parts[-1]["text"].splitlines()[1:4] for parts in asked] == [
        ["A. a", "B. b", "C. c"],
        ["A. b", "B. c", "C. a"],
        ["A. c", "B. a", "C. b"],
    ]
    assert all(parts[0] == asked[0][0] for parts in asked)  # the picture
    assert "Look closely.\nWhich is larger?\nA. dog\nB. cat" in two.rotations[0]
    assert score(three.metric, '["C", "B", "B"]', three.answer) == 0
    assert score(three.metric, '["C", "C", "C"]', three.answer) == 0  # the same letter whatever is asked
    assert (two.guess, three.guess) == (1 / 4, pytest.approx(1 / 27))


def test_ai2d_letters_cover_the_labels(tmp_path: Path) -> None:
    plain, lettered = load("ai2d", tmp_path)
    shown = lettered.messages[0]["content"][0]["image"]
    assert plain.messages[0]["content"][0]["image"] == str(tmp_path / "images/5.png")
    assert shown.getpixel((5, 5)) == (255, 255, 255)
    assert shown.getpixel((35, 25)) == (90, 120, 200)


def test_some_of_many_are_drawn_by_the_seed(tmp_path: Path) -> None:
    ocrbench(tmp_path)
    drawn = {tuple(item.task for item in load_suite(f"ocrbench:{tmp_path}", 1, seed)) for seed in range(12)}
    assert len(drawn) == 3


@pytest.mark.parametrize("name", MADE)
def test_an_empty_folder_is_one_clear_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as its authors publish it") as error:
        load_suite(f"{name}:{tmp_path}", 1, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("docvqa", "val_v1.0_withQT.json", {"rows": []}),
        ("docvqa", "val_v1.0_withQT.json", "{"),
        ("textvqa", "TextVQA_0.5.1_val.json", [1]),
        ("mmmu", "MMMU_DEV_VAL.tsv", "index\tanswer\n1\tB\n"),
        (
            "docvqa",
            "val_v1.0_withQT.json",
            {"data": [{"question": "?", "image": "none.png", "answers": ["a"]}]},
        ),
    ],
)
def test_another_layout_is_one_clear_line(name: str, file: str, content: Any, tmp_path: Path) -> None:
    write(tmp_path / file, content)
    with pytest.raises(UserError) as error:
        load_suite(f"{name}:{tmp_path}", 1, 0)
    assert "not laid out as published" in str(error.value) or "cannot read" in str(error.value)
    assert "\n" not in str(error.value)
