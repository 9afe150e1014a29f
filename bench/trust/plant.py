"""Faults as they happen to a build, each planted in a copy of a checkpoint: a function `(source, out)`.

Two are faults of code, not of files: they last as long as a context.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

from bench.trust.roundings import Tensors, rewritten
from engines import images, videos
from engines.artifact import write_json
from engines.config import read_json

LAYER = 1  # where a decoder layer is damaged
Code = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """A fault by name. `of`: the sound variant it is planted in, fp16 or int4; `place`: where the candidate
    first leaves the baseline, as bench.divergence names it.
    """

    name: str
    place: str
    plant: Callable[[Path, Path], object]
    of: str = "fp16"
    code: Code = nullcontext


def scaled_layer(source: Path, out: Path) -> None:
    """Every scale of one layer x1.2, of a checkpoint in INT4."""

    def change(tensors: Tensors) -> None:
        for name, scales in tensors.items():
            if f".language_model.layers.{LAYER}." in name and name.endswith(".weight_scale"):
                tensors[name] = (scales * 1.2).astype(scales.dtype)

    rewritten(source, out, change)


def zeroed_head(source: Path, out: Path) -> None:
    """One attention head of one layer reaches nobody."""
    width = read_json(source / "config.json")["text_config"]["head_dim"]

    def change(tensors: Tensors) -> None:
        name = f"model.language_model.layers.{LAYER}.self_attn.o_proj.weight"
        tensors[name] = tensors[name].copy()
        tensors[name][:, :width] = 0

    rewritten(source, out, change)


def swapped_deepstack(source: Path, out: Path) -> None:
    """The mergers of the first two deepstack levels in each other's place."""
    first, second = (f"model.visual.deepstack_merger_list.{i}." for i in (0, 1))

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith(first)]:
            other = second + name.removeprefix(first)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    rewritten(source, out, change)


def mrope_sections(source: Path, out: Path) -> None:
    """Most of the rotary frequencies given to time, few left to height and width."""
    shutil.copytree(source, out)
    config = read_json(out / "config.json")
    rope = config["text_config"]["rope_parameters"]
    rope["mrope_section"] = [sum(rope["mrope_section"]) - 4, 2, 2]
    write_json(out / "config.json", config)


def chat_template(source: Path, out: Path) -> None:
    """The template of the model before, Qwen2-VL's: it begins with a system prompt that nobody wrote."""
    shutil.copytree(source, out)
    path = out / "chat_template.jinja"
    system = "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}\n"
    path.write_text(system + path.read_text(encoding="utf-8"), encoding="utf-8")


@contextmanager
def nearest_filter() -> Iterator[None]:
    """Pictures and frames are resized by taking the nearest pixel, where bicubic is meant."""

    def nearest(image: Image.Image, height: int, width: int) -> Image.Image:
        return image.resize((width, height), Image.Resampling.NEAREST)

    with patch.object(images, "resize", nearest), patch.object(videos, "resize", nearest):
        yield


@contextmanager
def late_timestamps() -> Iterator[None]:
    """Frames counted from 1: each is said to be one frame later than it is."""
    right = videos.timestamps

    def late(indices: Any, rate: float, group: int) -> list[float]:
        return right([index + 1 for index in indices], rate, group)

    with patch.object(videos, "timestamps", late):
        yield


FAULTS = (
    Fault("a layer's scales x1.2", f"decoder layer {LAYER}", scaled_layer, of="int4"),
    Fault("an attention head zeroed", f"decoder layer {LAYER}", zeroed_head),
    Fault("deepstack levels swapped", "deepstack 0", swapped_deepstack),
    Fault("wrong mRoPE sections", "mRoPE", mrope_sections),
    Fault("wrong chat template", "prompt", chat_template),
    Fault("wrong resize filter", "pixels", shutil.copytree, code=nearest_filter),
    Fault("video timestamps off by a frame", "prompt", shutil.copytree, code=late_timestamps),
)
