"""Items: ids that follow the content, files that come back equal, malformed lines named by file and line."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.tasks import Item, item_id, read_items, write_items
from engines.errors import UserError


def picture(seed: int = 0, width: int = 5, height: int = 3) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def uri(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def as_image(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def ask(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]


def test_id_depends_on_pixels_not_on_their_encoding(tmp_path: Path) -> None:
    image = picture()
    image.save(tmp_path / "a.bmp")
    spellings = [
        {"type": "image", "image": image},
        {"type": "image", "image": str(tmp_path / "a.bmp")},
        {"type": "image", "image": uri(image)},
        {"type": "image_url", "image_url": {"url": uri(image, "BMP")}},
    ]
    assert len({item_id("t", ask(part), "yes") for part in spellings}) == 1


@pytest.mark.parametrize(
    "other",
    [
        ("u", ask(as_image(picture())), "yes"),
        ("t", ask(as_image(picture())), "no"),
        ("t", ask(as_image(picture(1))), "yes"),
        ("t", ask({"type": "image", "image": picture(0).transpose(Image.Transpose.ROTATE_90)}), "yes"),
        ("t", ask({"type": "video", "video": [picture()], "fps": 2.0}), "yes"),
        ("t", ask(as_image(picture())), "yes", "exact", ("What is this?",)),
        ("t", ask({"type": "image", "image": Image.frombytes("RGB", (3, 5), picture().tobytes())}), "yes"),
    ],
)
def test_id_changes_with_any_content(other: tuple[Any, ...]) -> None:
    assert item_id(*other) != item_id("t", ask(as_image(picture())), "yes")


def test_id_is_pinned() -> None:
    """Ids are stored as evidence and compared across builds, so the form they hash may never drift."""
    messages = [{"role": "user", "content": "Code of Ümlaut?"}]
    canonical = '{"answer":"A1","messages":[{"parts":[{"text":"Code of Ümlaut?"}],"role":"user"}],"task":"t"}'
    assert item_id("t", messages, "A1") == hashlib.sha256(canonical.encode()).hexdigest()


def test_items_come_back_equal(tmp_path: Path) -> None:
    items = [
        Item.make("text", [{"role": "user", "content": "1+1="}], "2", 0.1),
        Item.make("line", [{"role": "user", "content": "a\u2028b\n"}], "2", 0.1),
        Item.make("turned", ask(as_image(picture())), "[]", 0.25, "circular", ("And now?", "中")),
        Item.make("two", ask(as_image(picture()), as_image(picture(1, 9))), "x", 0.5),
        Item.make(
            "clip", ask({"type": "video", "video": [picture(i) for i in range(4)], "fps": 2}), "中文", 0.0
        ),
    ]
    write_items(tmp_path / "a.jsonl", items)
    read = read_items(tmp_path / "a.jsonl")
    assert [replace(i, messages=[]) for i in read] == [replace(i, messages=[]) for i in items]
    assert [parts[0]["content"][-1]["text"] for parts in read[2].conversations] == [
        "What is it?",
        "And now?",
        "中",
    ]
    url = read[3].messages[0]["content"][0]["image_url"]["url"]
    decoded = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert np.array_equal(np.asarray(decoded), np.asarray(picture()))
    assert read[4].messages[0]["content"][0]["fps"] == 2
    write_items(tmp_path / "b.jsonl", read)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


GOOD = {"task": "t", "messages": [{"role": "user", "content": "?"}], "answer": "a", "guess": 0.0}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "found list"),
        (json.dumps({**GOOD, "answer": 7}), "'answer' is 7"),
        (json.dumps({**GOOD, "guess": 1.5}), "probability"),
        (json.dumps({**GOOD, "metric": []}), "'metric' is []"),
        (json.dumps({**GOOD, "id": "0" * 64}), "does not match the content"),
        (json.dumps({**GOOD, "messages": ["hi"]}), "'content'"),
        (json.dumps({**GOOD, "messages": ask({"type": "audio"})}), "type 'audio'"),
        (json.dumps({**GOOD, "messages": ask(as_image("data:image/png,xx"))}), "expected data:image"),
        (json.dumps({**GOOD, "messages": ask(as_image("data:image/png;base64,AAAA"))}), "not a picture"),
        (json.dumps({**GOOD, "messages": ask(as_image("/nonexistent.png"))}), "cannot read"),
        (json.dumps({**GOOD, "messages": ask(as_image(None))}), "found NoneType"),
        (json.dumps({**GOOD, "messages": ask({"type": "video", "video": [], "fps": "2"})}), "'fps' is '2'"),
        (json.dumps({**GOOD, "rotations": ["a", 1]}), "'rotations' is ['a', 1]"),
        (json.dumps(GOOD), "there twice"),
    ],
)
def test_malformed_lines_name_file_and_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"items\.jsonl:3: ") as error:
        read_items(path)
    assert says in str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe"])
def test_a_missing_or_empty_file_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "items.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"items\.jsonl"):
        read_items(path)


def test_a_video_file_cannot_be_embedded(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"bytes")
    item = Item.make("v", ask({"type": "video", "video": str(tmp_path / "v.mp4")}), "a", 0.0)
    with pytest.raises(UserError, match="frames as a list"):
        write_items(tmp_path / "items.jsonl", [item])
