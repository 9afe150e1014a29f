"""Reads the safetensors format by mmap (https://github.com/huggingface/safetensors#format).

The library's numpy front copies every tensor and knows no bfloat16; here tensors are views of the file.
"""

from __future__ import annotations

import json
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
        header = json.loads(content[8 : 8 + header_size].tobytes())
        header.pop("__metadata__", None)
        data = content[8 + header_size :]
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if end > data.size:
            raise UserError(
                f"{path} is truncated: it holds {data.size} bytes of tensors, its header promises {end}"
            )
        return {name: _view(data, entry) for name, entry in header.items()}
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} has a malformed safetensors header: {error!r}") from None


def _view(data: NDArray[np.uint8], entry: dict[str, Any]) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    tensor: NDArray[Any] = data[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensor
