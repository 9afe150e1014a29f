"""The safetensors format (https://github.com/huggingface/safetensors#format): read by mmap, streamed out.

The library's numpy front copies every tensor and knows no bfloat16; here tensors are views of the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from engines.errors import UserError

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_safetensors(path: Path) -> dict[str, NDArray[Any]]:
    """Every tensor of the file as a read-only view of its memory map.

    Raises UserError for a missing, truncated or malformed file and for element types not in DTYPES.
    """
    try:
        content = np.memmap(path, np.uint8, mode="r")
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch it again or remove it from the index") from None
    except (OSError, ValueError) as error:  # an empty file cannot be mapped: ValueError
        raise UserError(f"{path} cannot be read: {error}") from None
    header_size = int.from_bytes(content[:8].tobytes(), "little")
    if content.size < 8 + header_size:
        raise UserError(
            f"{path} is truncated or no safetensors file: {content.size} bytes do not hold its header"
        )
    try:
        header = json.loads(content[8 : 8 + header_size].tobytes(), object_pairs_hook=_unique)
        header.pop("__metadata__", None)
        data = content[8 + header_size :]
        end = _check_layout(header)
        if end != data.size:
            problem = "is truncated" if end > data.size else "has bytes of no tensor"
            raise UserError(
                f"{path} {problem}: it holds {data.size} bytes of tensors, its header promises {end}"
            )
        return {name: _view(data, entry) for name, entry in header.items()}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} has a malformed safetensors header: {error!r}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _check_layout(header: dict[str, dict[str, Any]]) -> int:
    """Where the last tensor ends; ValueError unless they lie one after the other, as the format has them."""
    end = 0
    for begin, stop in sorted(tuple(entry["data_offsets"]) for entry in header.values()):
        if not (type(begin) is type(stop) is int and end == begin <= stop):
            raise ValueError(f"a tensor from {begin!r} to {stop!r}, expected one from {end} on")
        end = stop
    return end


def _view(data: NDArray[np.uint8], entry: dict[str, Any]) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    dtype, shape = np.dtype(DTYPES[entry["dtype"]]), entry["shape"]
    if any(type(size) is not int or size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    tensor: NDArray[Any] = data[begin:end].view(dtype).reshape(shape)
    return tensor


def stream_safetensors(
    path: Path,
    layout: Mapping[str, tuple[Any, tuple[int, ...]]],
    blocks: Callable[[str], Iterable[NDArray[Any]]],
) -> None:
    """Writes a file tensor by tensor; it appears under its name when it is complete.

    Args:
        layout: element type and shape of each tensor. Wider types come first in the file, so that every
            tensor lies aligned to its own size.
        blocks: gives a tensor's consecutive parts by its name; no more than one is held at a time.

    Raises ValueError when the blocks of a tensor are not as many bytes as its layout says.

    """
    types = {np.dtype(kind): name for name, kind in DTYPES.items()}
    names = sorted(layout, key=lambda name: (-np.dtype(layout[name][0]).itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        dtype, shape = np.dtype(layout[name][0]), layout[name][1]
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": types[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for block in blocks(name):
                file.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
            if file.tell() != 8 + len(text) + header[name]["data_offsets"][1]:
                raise ValueError(f"{name}: its blocks are not the {layout[name]} promised")
    partial.replace(path)
