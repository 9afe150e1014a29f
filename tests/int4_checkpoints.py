"""INT4 checkpoints for tests: round-to-nearest, and a dense twin of the same values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from engines.int4 import Int4
from engines.packing import to_compressed_tensors


def round_to_nearest(weight: NDArray[Any], group_size: int) -> Int4:
    """Symmetric INT4 of a weight [N, K]."""
    rows, columns = weight.shape
    groups = weight.astype(np.float32).reshape(rows, -1, group_size)
    scales = (np.abs(groups).max(-1) / 7).astype(np.float16)
    codes = np.clip(np.rint(groups / scales.astype(np.float32)[:, :, None]) + 8, 0, 15)
    return Int4(codes.reshape(rows, columns).astype(np.uint8), scales, group_size)


def write_int4_pair(
    source: Path, directory: Path, group_size: int = 32, *, head: bool = False
) -> tuple[Path, Path]:
    """`source`'s decoder linears in 4 bits, as a compressed-tensors checkpoint and as a dense fp32 one.

    head: whether an untied head is in 4 bits too, as some tools leave it.
    """
    packed, dense = directory / "packed", directory / "dense"
    tensors = load_file(source / "model.safetensors")
    linears = {
        name for name in tensors if ".language_model.layers." in name and name.endswith("_proj.weight")
    }
    linears |= {"lm_head.weight"} if head else set()
    int4 = {name: round_to_nearest(tensors[name], group_size) for name in linears}
    rest = {name: tensors[name] for name in tensors if name not in linears}
    packings = {
        f"{name.removesuffix('.weight')}.{part}": array
        for name, weight in int4.items()
        for part, array in to_compressed_tensors(weight).items()
    }
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group_size,
        "dynamic": False,
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["re:.*visual.*"] if head else ["lm_head", "re:.*visual.*"],
    }
    _write(source, packed, rest | packings, quantization_config=quantization)
    dequantized = {name: weight.dequantize() for name, weight in int4.items()}
    floats = {name: array.astype(np.float32) for name, array in rest.items()}
    _write(source, dense, floats | dequantized, dtype="float32")
    return packed, dense


def _write(source: Path, directory: Path, tensors: dict[str, NDArray[Any]], **config: Any) -> None:
    shutil.copytree(source, directory)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    merged = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(merged))
