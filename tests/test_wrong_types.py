"""Every field of a checkpoint's JSON files as something else: taken as it is, or refused with one line."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.processor import Processor
from engines.quantized import Quantization
from engines.reference import ReferenceSession
from serve.arm.model import sampling_defaults
from tests.checkpoints import edit_json
from tests.fuzz.seeds import seeds

OTHERS: tuple[Any, ...] = (
    *(None, True, -1, 7, 1.5, 10**400, float("inf"), "", "x", [], ["x"], [[7]], {}, {"x": [7]}),
    ["Qwen3VLForConditionalGeneration", 7],
)
FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
FEW = 40  # entries of a list or an object: a vocabulary's are alike
MESSAGES = [
    {"role": "user", "content": [{"type": "image", "image": Image.new("RGB", (40, 24))}]},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": [{"type": "video", "video": [Image.new("RGB", (16, 16))] * 2, "fps": 1.0}]},
]


def changed(document: Any) -> Iterator[tuple[str, Any]]:
    """A name and a copy for every place of a JSON value with something else in it."""
    for place in places(document):
        for other in OTHERS:
            found = copy.deepcopy(document)
            *parents, last = place
            target = found
            for part in parents:
                target = target[part]
            target[last] = other
            yield f"{'.'.join(map(str, place))} = {str(other)[:20]}", found


def places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value[:1]))
    for key, inner in items if len(items) <= FEW else items[:1]:
        yield (*before, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*before, key))


def refuses_or_takes(name: str, use: Callable[[], object]) -> None:
    try:
        use()
    except UserError:
        pass
    except Exception as error:
        raise AssertionError(f"{name}: {error!r:.200}") from error


@pytest.fixture
def folder(tmp_path: Path, micro_checkpoint: Path) -> Path:
    for file in micro_checkpoint.iterdir():
        if file.suffix == ".json":
            shutil.copyfile(file, tmp_path / file.name)
        else:
            (tmp_path / file.name).symlink_to(file)
    return tmp_path


@pytest.mark.parametrize("file", FILES)
def test_a_field_of(file: str, folder: Path) -> None:
    def use() -> None:
        sampling_defaults(folder)
        Checkpoint.open(folder)
        Processor.load(folder)(MESSAGES)

    use()
    for name, document in changed(json.loads((folder / file).read_text())):
        (folder / file).write_text(json.dumps(document))
        refuses_or_takes(name, use)


@pytest.mark.parametrize("seed", seeds("quantization"))
def test_a_quantization_config(seed: bytes) -> None:
    for name, document in changed(json.loads(seed)):
        refuses_or_takes(name, partial(Quantization.parse, document.get("quantization_config")))


@pytest.mark.parametrize(
    "changes",
    [
        {"text_config__attention_dropout": "x"},
        {"vision_config__initializer_range": [7]},
        {"text_config__layer_types": "x"},
    ],
)
def test_what_only_transformers_reads(changes: dict[str, Any], folder: Path) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UserError, match="transformers refuses it"):
        ReferenceSession(folder)
