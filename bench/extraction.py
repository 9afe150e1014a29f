"""What an answer holds: words, numbers, boxes, a list, JSON. Nothing here raises on what a model says."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from typing import Any

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")
ARTICLES = ("a", "an", "the")
WORDS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def plain(text: str) -> str:
    """Composed characters and single spaces: what a reader cannot see is no error."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def words_in(text: str) -> list[str]:
    """In lower case, without punctuation."""
    marks = str.maketrans(
        dict.fromkeys(string.punctuation.replace("-", "").replace(".", "") + "“”‘’。、，؟،")
    )
    return [w.strip(".-") for w in plain(text).casefold().translate(marks).split() if w.strip(".-")]


def vqa_words(text: str) -> str:
    """The VQA evaluation's form: lower case, no articles nor punctuation, small numbers as digits."""
    found = [word for word in words_in(text) if word not in ARTICLES]
    return " ".join(str(WORDS.index(word)) if word in WORDS[:11] else word for word in found)


def numbers_in(text: str) -> list[float]:
    """In digits, thousands with or without commas."""
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


def as_number(text: str) -> float | None:
    """What is a number but for a currency or percent sign; None for all else."""
    bare = text.strip().rstrip(".").strip(" $€£%").replace(",", "")
    try:
        return float(bare)
    except ValueError:
        return None


def boxes_in(text: str) -> list[tuple[float, ...]]:
    """[x1, y1, x2, y2], or Qwen's (x1,y1),(x2,y2) where there is none of those."""
    one = r"\s*(-?\d+(?:\.\d+)?)\s*"
    listed = re.findall(rf"[\[(]{one},{one},{one},{one}[\])]", text)
    return [
        tuple(map(float, found))
        for found in listed or re.findall(rf"\({one},{one}\),?\s*\({one},{one}\)", text)
    ]


def json_in(text: str) -> Any:
    """The JSON object in a text, fenced or among words; None if there is none."""
    begin, end = text.find("{"), text.rfind("}")
    try:
        return json.loads(text[begin : end + 1], parse_int=float) if 0 <= begin < end else None
    except (ValueError, RecursionError):
        return None


def list_in(text: str) -> list[list[str]]:
    """The words of each part between commas, semicolons, arrows or line breaks."""
    return [found for part in re.split(r"[,;\n]|->|→", text) if (found := words_in(part))]
