"""Public benchmarks, read from a folder as their authors publish them and scored as they score them.

OCRBench (Liu et al. 2023), DocVQA (Mathew et al. 2021), ChartQA (Masry et al. 2022), TextVQA (Singh et al.
2019) and AI2D (Kembhavi et al. 2016) as their own archives unpack; MMMU (Yue et al. 2024) and MMBench (Liu
et al. 2023) as the TSV files of OpenCompass. MMBench asks each question once for every rotation of its
choices, and it is right only if all are (CircularEval).
"""

from __future__ import annotations

import ast
import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from bench.suites.drawing import font
from bench.tasks import Message
from engines.errors import UserError

COPIES = 1_000_000  # from here on a number of MMBench is that of a question with its choices rotated
SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


class Draft(NamedTuple):
    """The fields of an item to be: pictures are opened only of those that are asked."""

    task: str
    messages: list[Message]
    answer: str
    guess: float
    metric: str
    rotations: tuple[str, ...] = ()


def ocrbench(folder: Path) -> list[Draft]:
    """A slice for each of its ten types; handwritten formulas keep their case."""
    drafts = []
    for row in _json(_file(folder, FILES["ocrbench"])):
        metric = "contains_formula" if row["dataset_name"] == "HME100k" else "contains"
        answers = row["answers"] if isinstance(row["answers"], list) else [row["answers"]]
        picture = _file(folder, (f"OCRBench_Images/{row['image_path']}", row["image_path"]))
        task = f"ocrbench-{row['type'].lower().replace(' ', '-')}"
        drafts.append(Draft(task, _ask(row["question"], str(picture)), json.dumps(answers), 0.0, metric))
    return drafts


def docvqa(folder: Path) -> list[Draft]:
    return [
        Draft(
            "docvqa",
            _ask(row["question"] + SHORT, str(folder / row["image"])),
            json.dumps(row["answers"]),
            0.0,
            "anls",
        )
        for row in _json(_file(folder, FILES["docvqa"]))["data"]
    ]


def chartqa(folder: Path) -> list[Draft]:
    """Its two halves are two slices: questions by people, and made from the charts' summaries."""
    return [
        Draft(
            f"chartqa-{half}",
            _ask(
                row["query"] + SHORT,
                str(_file(folder, (f"test/png/{row['imgname']}", f"png/{row['imgname']}"))),
            ),
            str(row["label"]),
            0.0,
            "relaxed",
        )
        for half, name in (("human", "test_human.json"), ("augmented", "test_augmented.json"))
        for row in _json(_file(folder, (f"test/{name}", name)))
    ]


def textvqa(folder: Path) -> list[Draft]:
    return [
        Draft(
            "textvqa",
            _ask(row["question"] + SHORT, str(folder / "train_images" / f"{row['image_id']}.jpg")),
            json.dumps(row["answers"]),
            0.0,
            "vqa",
        )
        for row in _json(_file(folder, FILES["textvqa"]))["data"]
    ]


def ai2d(folder: Path) -> list[Draft]:
    """The questions of the test diagrams; where a question asks for letters, they stand in place of the
    labels.
    """
    tests = _file(folder, FILES["ai2d"]).read_text().split()
    drafts = []
    for test in tests:
        path = folder / "questions" / f"{test}.png.json"
        if not path.is_file():  # a few test diagrams have no questions
            continue
        document = _json(path)
        picture = str(folder / "images" / document["imageName"])
        for question, row in document["questions"].items():
            shown = (
                _lettered(picture, _json(folder / "annotations" / path.name)) if row["abcLabel"] else picture
            )
            choices = dict(zip("ABCD", row["answerTexts"], strict=False))
            asked = _ask(question + _listed(choices) + LETTER, shown)
            drafts.append(Draft("ai2d", asked, "ABCD"[int(row["correctAnswer"])], 1 / len(choices), "choice"))
    return drafts


def mmmu(folder: Path) -> list[Draft]:
    """Pictures stand where the question says <image N>; a question without choices is answered in words."""
    drafts = []
    for row in _tsv(_file(folder, FILES["mmmu"])):
        guess, metric = (1 / len(row.choices), "choice") if row.choices else (0.0, "words")
        text = row.question + (_listed(row.choices) + LETTER if row.choices else SHORT)
        drafts.append(Draft("mmmu", _ask(text, *row.pictures), row.answer, guess, metric))
    return drafts


def mmbench(folder: Path) -> list[Draft]:
    """A slice for each category. The published file repeats each question with its choices rotated, numbered
    from a million on; every rotation is made from the question itself.
    """
    drafts = []
    for row in _tsv(_file(folder, FILES["mmbench"])):
        if int(row.number) >= COPIES:
            continue
        letters, said = list(row.choices), list(row.choices.values())
        k, place = len(said), letters.index(row.answer)
        text, *others = (
            row.question + _listed(dict(zip(letters, said[shift:] + said[:shift], strict=True))) + LETTER
            for shift in range(k)
        )
        answers = [f"{letters[(place - shift) % k]}. {said[place]}" for shift in range(k)]
        task = f"mmbench-{row.category.replace('_', '-')}"
        messages = _ask(text, *row.pictures)
        drafts.append(Draft(task, messages, json.dumps(answers), k**-k, "circular", tuple(others)))
    return drafts


def question_files(benchmark: str, folder: Path) -> list[Path]:
    """The files that hold a benchmark's questions and answers."""
    if benchmark == "chartqa":
        return [_file(folder, (f"test/{name}", name)) for name in ("test_human.json", "test_augmented.json")]
    return [_file(folder, FILES[benchmark])]


BENCHMARKS: dict[str, Callable[[Path], list[Draft]]] = {
    "ocrbench": ocrbench,
    "docvqa": docvqa,
    "chartqa": chartqa,
    "textvqa": textvqa,
    "ai2d": ai2d,
    "mmmu": mmmu,
    "mmbench": mmbench,
}
FILES = {
    "ocrbench": ("OCRBench/OCRBench.json", "OCRBench.json"),
    "docvqa": ("val_v1.0_withQT.json", "val_v1.0.json"),
    "textvqa": ("TextVQA_0.5.1_val.json",),
    "ai2d": ("ai2d_test_ids.csv",),
    "mmmu": ("MMMU_DEV_VAL.tsv",),
    "mmbench": ("MMBench_DEV_EN.tsv", "MMBench_DEV_EN_V11.tsv"),
}


class _Row(NamedTuple):
    """A line of OpenCompass's tables; `question` with its hint before it."""

    number: str
    question: str
    choices: dict[str, str]
    answer: str
    category: str
    pictures: list[str]


def _tsv(path: Path) -> Iterator[_Row]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    pictures = {row["index"]: row["image"] for row in rows}
    for row in rows:
        # A short cell is the index of the row that has the picture.
        image = row["image"] if len(row["image"]) > 64 else pictures[row["image"]]
        listed = ast.literal_eval(image) if image.startswith("[") else [image]
        yield _Row(
            row["index"],
            (f"{row['hint']}\n" if row.get("hint") else "") + row["question"],
            {letter: row[letter] for letter in "ABCDEFGHI" if row.get(letter)},
            row["answer"],
            row["category"],
            [f"data:image/jpeg;base64,{one}" for one in listed],
        )


def _ask(text: str, *pictures: Any) -> list[Message]:
    """Pictures where the text names them as <image N>, the others first."""
    pieces = re.split(r"<image (\d+)>", text)
    named = {int(n) for n in pieces[1::2]}
    content = [_image(picture) for i, picture in enumerate(pictures, 1) if i not in named]
    for i, piece in enumerate(pieces):
        if i % 2 and 1 <= int(piece) <= len(pictures):
            content.append(_image(pictures[int(piece) - 1]))
        elif i % 2 == 0 and piece:
            content.append({"type": "text", "text": piece})
    return [{"role": "user", "content": content}]


def _image(picture: Any) -> dict[str, Any]:
    return {"type": "image", "image": picture}


def _listed(choices: dict[str, str]) -> str:
    return "".join(f"\n{letter}. {choice}" for letter, choice in choices.items())


def _lettered(picture: str, annotation: dict[str, Any]) -> Image.Image:
    """The diagram with each label covered by the letter that stands for it."""
    with Image.open(picture) as opened:
        shown = opened.convert("RGB")
    pen = ImageDraw.Draw(shown)
    for label in annotation["text"].values():
        (left, top), (right, bottom) = label["rectangle"]
        pen.rectangle((left, top, right, bottom), fill="white")
        size = max(8, min(round(bottom - top), round(right - left)))
        middle = ((left + right) / 2, (top + bottom) / 2)
        pen.text(middle, label["replacementText"], "black", font("sans", size), anchor="mm")
    return shown


def _file(folder: Path, names: tuple[str, ...]) -> Path:
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise UserError(
            f"{folder} holds no {' nor '.join(names)}: expected the benchmark as its authors publish it"
        )
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; expected the benchmark's own JSON") from None
