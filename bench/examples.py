"""Items that a variant answers differently from the baseline, few and worth looking at."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from bench.accuracy import Observation
from bench.tasks import Item
from engines.images import load_image

MOST = 8  # items
PICTURES = 4  # of an item
SIDE = 288  # pixels: a page is not legible at that, but recognised
SMALL = 96  # a picture up to here is shown as it is, each pixel enlarged
LONGEST = 240  # characters of a text


@dataclass(frozen=True)
class Answer:
    names: tuple[str, ...]  # variants that said the same
    text: str
    score: float
    correct: bool


@dataclass(frozen=True)
class Example:
    """An item with what the baseline said of it, and what those said whose score is another."""

    id: str
    task: str
    question: str
    expected: str
    pictures: tuple[str, ...]  # data URIs
    small: bool
    more_pictures: int
    answers: tuple[Answer, ...]  # the baseline's first


def choose(
    baseline: str, answers: Mapping[str, Sequence[Observation]], most: int = MOST
) -> list[tuple[str, list[Answer]]]:
    """Ids of items with their answers: those that most variants lose, each task in turn.

    Last comes one that variants win, where there is any: losses alone would tell half of it.
    """
    said = {name: {x.id: x for x in rows} for name, rows in answers.items() if rows}
    if baseline not in said:
        return []
    changed: dict[str, float] = {}
    for x in answers[baseline]:
        scores = [rows[x.id].score - x.score for rows in said.values() if x.id in rows]
        changed[x.id] = min(scores) if min(scores) < 0 else max(scores)
    task = {x.id: x.task for x in answers[baseline]}

    def lost(one: str) -> float:
        return sum(
            min(0.0, rows[one].score - said[baseline][one].score) for rows in said.values() if one in rows
        )

    losses = sorted((one for one, change in changed.items() if change < 0), key=lambda one: (lost(one), one))
    wins = sorted(
        (one for one, change in changed.items() if change > 0), key=lambda one: (-changed[one], one)
    )
    chosen = _in_turn(losses, task)[: most - bool(wins)] + wins[:1]
    return [(one, _answers(baseline, said, one)) for one in chosen]


def show(chosen: Sequence[tuple[str, list[Answer]]], items: Mapping[str, Item]) -> list[Example]:
    """The chosen items with their pictures, those of a video spread over it. Items not given are left out."""
    found = []
    for one, answers in chosen:
        if one not in items:
            continue
        item = items[one]
        sources = _sources(item)
        kept = sources[:: -(-len(sources) // PICTURES)] if sources else []
        pictures = [load_image(source) for source in kept]
        small = all(max(picture.size) <= SMALL for picture in pictures)
        found.append(
            Example(
                one,
                item.task,
                _short(_question(item)),
                _short(item.answer),
                tuple(_data_uri(picture, small) for picture in pictures),
                small,
                len(sources) - len(kept),
                tuple(answers),
            )
        )
    return found


def _in_turn(ids: Sequence[str], task: Mapping[str, str]) -> list[str]:
    """One of each task, then a second of each, and so on."""
    seen: dict[str, int] = {}
    order = []
    for one in ids:
        place = seen.setdefault(task[one], 0)
        seen[task[one]] += 1
        order.append((place, one))
    return [one for _, one in sorted(order, key=lambda entry: entry[0])]


def _answers(baseline: str, said: Mapping[str, Mapping[str, Observation]], one: str) -> list[Answer]:
    """The baseline's, then those of another score, those that said the same together."""
    first = said[baseline][one]
    groups: dict[tuple[str, float], list[str]] = {}
    for name, rows in said.items():
        if name != baseline and one in rows and rows[one].score != first.score:
            groups.setdefault((rows[one].text.strip(), rows[one].score), []).append(name)
    found = [Answer((baseline,), _short(first.text.strip()), first.score, first.correct)]
    for (text, score), names in groups.items():
        found.append(Answer(tuple(names), _short(text), score, said[names[0]][one].correct))
    return found


def _question(item: Item) -> str:
    content = item.messages[-1]["content"]
    texts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content]
    return " ".join(" ".join(texts).split())


def _sources(item: Item) -> list[Image.Image | str]:
    found: list[Image.Image | str] = []
    for message in item.messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            match part["type"]:
                case "image":
                    found.append(part["image"])
                case "image_url":
                    url = part["image_url"]
                    found.append(url["url"] if isinstance(url, dict) else url)
                case "video" if isinstance(part["video"], list):
                    found += part["video"]
    return found


def _data_uri(picture: Image.Image, small: bool) -> str:
    buffer = io.BytesIO()
    if small:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.save(buffer, "JPEG", quality=78)
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _short(text: str) -> str:
    """A long question ends with what is asked, so its middle is left out."""
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} … {text[-half:]}"
