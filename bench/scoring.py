"""How well an answer fits: one pure function a metric, from 0 (wrong, malformed or missing) to 1.

An item names its metric and keeps what is right as a string, in JSON where it has parts. A metric never
raises on what a model says. Sources: ANLS: Biten et al., ICCV 2019; relaxed accuracy: Masry et al.,
ChartQA, 2022; CircularEval: Liu et al., MMBench, 2023; VQA accuracy: Antol et al., ICCV 2015; token F1:
Rajpurkar et al., SQuAD, 2016.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from bench.extraction import (
    ARTICLES,
    WORDS,
    as_number,
    boxes_in,
    json_in,
    list_in,
    numbers_in,
    plain,
    vqa_words,
    words_in,
)

SECONDS = 2.0  # an answer that is off by more, or tells no time, counts as off by this much


def score(metric: str, text: str, answer: str) -> float:
    """By the metric's name."""
    return METRICS[metric](text, answer)


def is_correct(metric: str, value: float) -> bool:
    """Whether a score counts as a right answer, where right and wrong are asked for."""
    return value >= RIGHT_FROM.get(metric, 1.0)


def exact(text: str, answer: str) -> float:
    """The same text but for whitespace at the ends."""
    return float(text.strip() == answer.strip())


def words(text: str, answer: str) -> float:
    """The same words in the same order, whatever their case and punctuation."""
    return float(words_in(text) == words_in(answer))


def choice(text: str, answer: str) -> float:
    """One letter, as in "B", "(b)" or "B. a red cup"; two letters are no choice, nor is "A red cup"."""
    found = re.match(r"\s*\(?([A-Za-z])\)?(?:[.:)]|\s*$)", text)
    others = re.findall(r"(?:^|\s|\()([A-Z])(?=[.:)]|$)", text)
    return float(found is not None and found[1].upper() == answer.upper() and set(others) <= {answer.upper()})


def circular(text: str, answer: str) -> float:
    """MMBench's CircularEval: the right letter every time the choices are rotated.

    Both are JSON lists, a text for each rotation; what is right begins with its letter, as in "B. a red cup".
    """
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return 0.0
    right = json.loads(answer)
    if not isinstance(said, list) or len(said) != len(right):
        return 0.0
    return min(choice(str(one), letter[0]) for one, letter in zip(said, right, strict=True))


def count(text: str, answer: str) -> float:
    """One whole number, in digits or as a word up to twelve."""
    found = numbers_in(text) or [float(WORDS.index(word)) for word in words_in(text) if word in WORDS]
    return float(len(found) == 1 and found[0] == float(answer))


def number(text: str, answer: str) -> float:
    """One number within 5 %; units and signs of currency are let be."""
    found = numbers_in(text)
    return float(len(found) == 1 and _close(found[0], float(answer)))


def relaxed(text: str, answer: str) -> float:
    """ChartQA: within 5 % if the answer is a number, else the same words; percent signs are dropped."""
    right, said = as_number(answer), as_number(text)
    return words(text, answer) if right is None or said is None else float(_close(said, right))


def characters(text: str, answer: str) -> float:
    """One minus the character error rate: edits over the length of what is right, 0 from there on."""
    from rapidfuzz.distance import Levenshtein

    said, right = plain(text), plain(answer)
    return max(0.0, 1 - int(Levenshtein.distance(said, right)) / len(right))


def box(text: str, answer: str) -> float:
    """Intersection over union with the one box told, [x1, y1, x2, y2] or Qwen's (x1,y1),(x2,y2)."""
    said, right = boxes_in(text), json.loads(answer)
    if len(said) != 1:
        return 0.0
    (ax, ay, az, aw), (bx, by, bz, bw) = said[0], right
    if az <= ax or aw <= ay:
        return 0.0
    overlap = max(0.0, min(az, bz) - max(ax, bx)) * max(0.0, min(aw, bw) - max(ay, by))
    return float(overlap / ((az - ax) * (aw - ay) + (bz - bx) * (bw - by) - overlap))


def fields(text: str, answer: str) -> float:
    """F1 over the leaves of a JSON object: a leaf counts if path and value are right."""
    said, right = json_in(text), json.loads(answer)
    if not isinstance(said, dict):
        return 0.0
    told, wanted = dict(_leaves(said)), dict(_leaves(right))
    hits = sum(path in told and _same(told[path], value) for path, value in wanted.items())
    return 2 * hits / (len(told) + len(wanted))


def strict_json(text: str, answer: str) -> float:
    """Nothing but JSON: 1 if its value is right, half if only names and types are, else 0."""
    try:
        said = json.loads(text, parse_int=float)  # an int may be too large to compare with a float
    except (ValueError, RecursionError):
        return 0.0
    return _value_or_shape(said, json.loads(answer))


def tool_call(text: str, answer: str) -> float:
    """One call in Qwen's form: 1 if name and arguments are right, half if the call is valid, else 0.

    The answer: {"name": ..., "arguments": ...}. Valid: the tool's name, every argument there and of its type.
    """
    calls = re.findall(r"<tool_call>(.*?)</tool_call>", text, re.DOTALL)
    said = json_in(calls[0]) if len(calls) == 1 else None
    fits = isinstance(said, dict) and said.get("name") == json.loads(answer)["name"]
    return strict_json(calls[0], answer) if fits else 0.0


def sequence(text: str, answer: str) -> float:
    """The same list in the same order, separated by commas, arrows, semicolons or lines."""
    return float(list_in(text) == list_in(answer))


def recall(text: str, answer: str) -> float:
    """The share of a JSON list's strings that are told, each as words of its own."""
    said, wanted = f" {' '.join(words_in(text))} ", json.loads(answer)
    return sum(f" {' '.join(words_in(one))} " in said for one in wanted) / len(wanted)


def token_f1(text: str, answer: str) -> float:
    """SQuAD's F1 of words, articles and punctuation aside."""
    said, right = (Counter(w for w in words_in(x) if w not in ARTICLES) for x in (text, answer))
    shared = sum((said & right).values())
    return 2 * shared / (said.total() + right.total()) if shared else 0.0


def seconds(text: str, answer: str) -> float:
    """1 at the right time, 0 from `SECONDS` off: the mean error is `SECONDS` times what is missing to 1."""
    found = numbers_in(text)
    return max(0.0, 1 - abs(found[0] - float(answer)) / SECONDS) if len(found) == 1 else 0.0


def anls(text: str, answer: str) -> float:
    """DocVQA: best normalised similarity to one of a JSON list of answers, below one half none at all."""
    from rapidfuzz.distance import Levenshtein

    said = plain(text).casefold()
    best = max(Levenshtein.normalized_similarity(said, plain(one).casefold()) for one in json.loads(answer))
    return best if best >= 0.5 else 0.0


def vqa(text: str, answer: str) -> float:
    """TextVQA: min(1, agreeing annotators / 3), averaged over each nine of the ten."""
    said, told = vqa_words(text), [vqa_words(one) for one in json.loads(answer)]
    alike = [one == said for one in told]
    shares = [min(1.0, (sum(alike) - one) / 3) for one in alike]
    return sum(shares) / len(shares)


def contains(text: str, answer: str) -> float:
    """OCRBench: one of a JSON list of answers is in the text, whatever the case and line breaks."""
    said = text.casefold().strip().replace("\n", " ")
    return float(any(one.casefold().strip().replace("\n", " ") in said for one in json.loads(answer)))


def contains_formula(text: str, answer: str) -> float:
    """OCRBench's handwritten formulas: as `contains` with all spaces gone and the case kept."""
    said = "".join(text.split())
    return float(any("".join(one.split()) in said for one in json.loads(answer)))


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact": exact,
    "words": words,
    "choice": choice,
    "circular": circular,
    "count": count,
    "number": number,
    "relaxed": relaxed,
    "characters": characters,
    "box": box,
    "fields": fields,
    "strict_json": strict_json,
    "tool_call": tool_call,
    "sequence": sequence,
    "recall": recall,
    "token_f1": token_f1,
    "seconds": seconds,
    "anls": anls,
    "vqa": vqa,
    "contains": contains,
    "contains_formula": contains_formula,
}
# Where less than a full score is called right: IoU by custom from one half, a time within a second.
RIGHT_FROM = {"box": 0.5, "seconds": 1 - 1 / SECONDS, "anls": 0.5, "vqa": 0.5}


def _close(said: float, right: float) -> bool:
    return abs(said - right) <= 0.05 * abs(right)


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [leaf for key, one in value.items() for leaf in _leaves(one, f"{path}.{key}")]
    if isinstance(value, list):
        return [leaf for i, one in enumerate(value) for leaf in _leaves(one, f"{path}[{i}]")]
    return [(path, value)]


def _same(said: Any, right: Any) -> bool:
    """Numbers to the cent, written as numbers or as text with a sign of currency; words as words."""
    a, b = (x if _is_number(x) else as_number(x) if isinstance(x, str) else None for x in (said, right))
    if a is not None and b is not None:
        return abs(float(a) - float(b)) < 0.005
    return isinstance(said, str) and isinstance(right, str) and words_in(said) == words_in(right)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _value_or_shape(said: Any, right: Any) -> float:
    if said == right and _shape(said) == _shape(right):
        return 1.0
    return 0.5 if _shape(said) == _shape(right) else 0.0


def _shape(value: Any) -> Any:
    """Names and types; the length of a list is content, and its elements' types are told once."""
    if isinstance(value, dict):
        return {key: _shape(one) for key, one in value.items()}
    if isinstance(value, list):
        shapes = [_shape(one) for one in value]
        return [one for i, one in enumerate(shapes) if one not in shapes[:i]]
    return "number" if _is_number(value) else type(value).__name__
