"""Copies of a checkpoint that are meant to be as good: other number formats, nothing planted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from engines.artifact import write_json
from engines.checkpoint import SIDE_FILES, SINGLE, Checkpoint
from engines.config import read_json
from engines.int4 import nearest
from engines.packing import to_compressed_tensors
from engines.safetensors import stream_safetensors

Tensors = dict[str, NDArray[Any]]
GROUP = 32  # columns that share a scale


def rewritten(source: Path, out: Path, change: Callable[[Tensors], None]) -> None:
    """The checkpoint `source` as the new folder `out`, its tensors changed in place by `change`."""
    checkpoint = Checkpoint.open(source)
    tensors = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    change(tensors)
    out.mkdir()
    for name in SIDE_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    layout = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    stream_safetensors(out / SINGLE, layout, lambda name: [tensors[name]])


def to_bfloat16(source: Path, out: Path) -> None:
    """Every weight rounded to bfloat16, which has three bits fewer than float16, and stored as it was."""

    def change(tensors: Tensors) -> None:
        for name, array in tensors.items():
            tensors[name] = array.astype(ml_dtypes.bfloat16).astype(array.dtype)

    rewritten(source, out, change)


def to_int4(source: Path, out: Path, group_size: int = GROUP) -> None:
    """The decoder's linears rounded to the nearest of 4 bits, in the layout of compressed-tensors."""

    def change(tensors: Tensors) -> None:
        for name in [n for n in tensors if ".language_model.layers." in n and n.endswith("_proj.weight")]:
            weight = nearest(np.asarray(tensors.pop(name)), group_size)
            packed = to_compressed_tensors(weight)
            tensors |= {f"{name.removesuffix('.weight')}.{part}": array for part, array in packed.items()}

    rewritten(source, out, change)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group_size}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    config = read_json(out / "config.json")
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "re:.*visual.*"],
    }
    write_json(out / "config.json", config)
