"""Evaluation items: a question with its images or video, the exact answer, and a hash of it all as the id.

One line of JSON per item, messages in OpenAI's form, images as PNG data URIs, videos as a list of such frames
with their rate: ``{"type": "video", "video": [URI, ...], "fps": 2.0}``. Calibration sets use the same lines.
An item may be asked again in other words, its choices rotated: it is one item all the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from bench.scoring import METRICS
from engines.errors import UserError

Message = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """One question. `guess` is the score to be had without looking, between 0 and 1; `metric` is how answers
    are scored (bench.scoring). `rotations` are texts to ask it by again, each in place of the last one.
    """

    id: str
    task: str
    messages: list[Message]
    answer: str
    guess: float
    metric: str = "exact"
    rotations: tuple[str, ...] = ()

    @classmethod
    def make(
        cls,
        task: str,
        messages: list[Message],
        answer: str,
        guess: float,
        metric: str = "exact",
        rotations: tuple[str, ...] = (),
    ) -> Item:
        """An item whose id is computed from its content."""
        identity = item_id(task, messages, answer, metric, rotations)
        return cls(identity, task, messages, answer, guess, metric, rotations)

    @property
    def conversations(self) -> list[list[Message]]:
        """Every way in which it is asked, `messages` first."""
        if not self.rotations:
            return [self.messages]
        *before, last = self.messages
        *shown, _ = _parts(last)
        texts = ([*shown, {"type": "text", "text": text}] if shown else text for text in self.rotations)
        return [self.messages, *([*before, {**last, "content": content}] for content in texts)]


def item_id(
    task: str,
    messages: list[Message],
    answer: str,
    metric: str = "exact",
    rotations: tuple[str, ...] = (),
) -> str:
    """sha256 over canonical JSON in which every picture stands as the sha256 of its size and RGB bytes.

    The encoding of a picture (PIL, PNG, path) and the spelling of a message (a string or one text part) do
    not matter, so an item keeps its id when it is written and read again.
    """
    content = {"task": task, "messages": [_canonical(m) for m in messages], "answer": answer}
    if metric != "exact":
        content["metric"] = metric
    if rotations:
        content["rotations"] = rotations
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Writes one JSON line per item, with every picture embedded."""
    with Path(path).open("w", encoding="utf-8") as file:
        for item in items:
            record = {
                "id": item.id,
                "task": item.task,
                "messages": [_portable(m) for m in item.messages],
                "answer": item.answer,
                "guess": item.guess,
                "metric": item.metric,
            }
            if item.rotations:
                record["rotations"] = item.rotations
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_items(path: Path) -> list[Item]:
    """Reads what `write_items` wrote; pictures stay data URIs. An item without an id is given one.

    Raises UserError, naming file and line, for a malformed line, an id that does not match its content, and a
    repeated item.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read items from {path}: {error}") from None
    items: dict[str, Item] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = _parse(line)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if item.id in items:
            raise UserError(f"{path}:{number}: item {item.id[:12]} is there twice; remove one line")
        items[item.id] = item
    if not items:
        raise UserError(f"{path} holds no items; expected one JSON object per line")
    return list(items.values())


def find_items(path: Path, ids: Collection[str]) -> dict[str, Item]:
    """Those of a file that `write_items` wrote whose ids are given; the others' pictures are not opened."""
    with Path(path).open(encoding="utf-8") as file:
        heads = ((line, json.loads("{" + line[1:].partition(", ")[0] + "}")) for line in file)
        return {head["id"]: _parse(line) for line, head in heads if head["id"] in ids}


def _parse(line: str) -> Item:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}); expected one object per line") from None
    if not isinstance(record, dict):
        raise UserError(
            f"found {type(record).__name__}; expected an object with task, messages, answer, guess"
        )
    for key, kind in (("task", str), ("messages", list), ("answer", str)):
        if not isinstance(record.get(key), kind):
            raise UserError(f"'{key}' is {record.get(key)!r:.40}; expected a {kind.__name__}")
    guess = record.get("guess", 0.0)
    if isinstance(guess, bool) or not isinstance(guess, int | float) or not 0 <= guess <= 1:
        raise UserError(f"'guess' is {guess!r:.40}; expected a probability between 0 and 1")
    metric = record.get("metric", "exact")
    if not isinstance(metric, str) or metric not in METRICS:
        raise UserError(f"'metric' is {metric!r:.40}; expected one of {', '.join(METRICS)}")
    rotations = record.get("rotations", [])
    if not isinstance(rotations, list) or not all(isinstance(text, str) for text in rotations):
        raise UserError(f"'rotations' is {rotations!r:.40}; expected a list of texts")
    fields = record["task"], record["messages"], record["answer"], float(guess), metric
    item = Item.make(*fields, tuple(rotations))
    if record.get("id", item.id) != item.id:
        raise UserError(
            f"id {record['id']!r:.20} does not match the content ({item.id[:12]}); drop the id to renew it"
        )
    return item


def _parts(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise UserError("a message needs a 'role' and 'content': a string or a list of parts")
    return content


def _source(part: Mapping[str, Any]) -> Any:
    """The picture of an image part in either spelling, else None."""
    if part.get("type") == "image":
        return part.get("image")
    if part.get("type") == "image_url":
        url = part.get("image_url")
        return url.get("url") if isinstance(url, Mapping) else url
    return None


def _canonical(message: Message) -> Message:
    parts: list[dict[str, Any]] = []
    for part in _parts(message):
        match part.get("type"):
            case "text":
                parts.append({"text": part.get("text")})
            case "image" | "image_url":
                parts.append({"image": _picture_hash(_source(part))})
            case "video":
                frames = part.get("video")
                digest: Any = (
                    [_picture_hash(frame) for frame in frames]
                    if isinstance(frames, list)
                    else hashlib.sha256(_read_file(frames)).hexdigest()
                )
                parts.append({"video": digest, "fps": _number(part.get("fps"))})
            case other:
                raise UserError(f"found a part of type {other!r}; expected text, image, image_url or video")
    return {"role": message.get("role"), "parts": parts}


def _number(fps: Any) -> float | None:
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, int | float)):
        raise UserError(f"'fps' is {fps!r:.40}; expected frames per second, a number")
    return None if fps is None else float(fps)


def _portable(message: Message) -> Message:
    """The message with every picture as a PNG data URI, in OpenAI's spelling. A string stays a string."""
    if isinstance(message["content"], str):
        return message
    parts: list[Mapping[str, Any]] = []
    for part in _parts(message):
        if part.get("type") in ("image", "image_url"):
            parts.append({"type": "image_url", "image_url": {"url": _data_uri(_source(part))}})
        elif part.get("type") == "video" and isinstance(part["video"], list):
            parts.append({**part, "video": [_data_uri(frame) for frame in part["video"]]})
        elif part.get("type") == "video":
            raise UserError(
                f"video {part['video']} is a file; an item needs its frames as a list, and their fps"
            )
        else:
            parts.append(part)
    return {**message, "content": parts}


def _picture_hash(source: Any) -> str:
    picture = _picture(source)
    size = f"{picture.width}x{picture.height}:".encode()
    return hashlib.sha256(size + picture.tobytes()).hexdigest()


def _data_uri(source: Any) -> str:
    if isinstance(source, str) and source.startswith("data:image/png;base64,"):
        return source
    buffer = io.BytesIO()
    _picture(source).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(source: Any) -> Image.Image:
    """PIL image, path or base64 data URI -> RGB."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if isinstance(source, str) and source.startswith("data:"):
        head, _, body = source.partition(",")
        try:
            if not head.endswith(";base64"):
                raise ValueError("not base64")
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise UserError(f"found {source[:40]!r}; expected data:image/png;base64,...") from None
    else:
        data = _read_file(source)
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError):
        raise UserError(f"{str(source)[:40]!r} is not a picture that can be decoded") from None


def _read_file(source: Any) -> bytes:
    if not isinstance(source, str | Path):
        raise UserError(f"found {type(source).__name__}; expected a picture: a path, data URI or PIL image")
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {str(source)[:80]}: {error.strerror}") from None
