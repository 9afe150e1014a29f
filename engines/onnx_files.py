"""The files of an ONNX artifact, besides the side files it keeps from the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from engines.config import TextConfig
from engines.errors import UserError

VISION = "vision.onnx"
DECODER = "decoder.onnx"
STEP = "step.onnx"  # the decoder for one token a sequence, where that is an engine of its own
EMBEDDING = "embedding.bin"  # [vocabulary, hidden size], row-major, fp16 or (from an fp32 checkpoint) fp32
HEAD_ROWS = 8192  # of a 16-bit head, widened at a time
PACKED = 0.3  # share of 4- and 8-bit weights that onnxruntime holds once more, in its own order
HEAD = "lm_head.weight"  # the head's weight in a graph; of an engine, where it is tied, an input

EmbeddingTable = np.memmap[tuple[int, int], np.dtype[Any]]


def read_embedding(path: Path, config: TextConfig) -> EmbeddingTable:
    """Map the token embeddings [vocab_size, hidden_size] of `path`; UserError when its size fits no type."""
    if not path.is_file():
        raise UserError(f"{path} is missing: export the checkpoint again")
    values = config.vocab_size * config.hidden_size
    types = {2 * values: np.float16, 4 * values: np.float32}
    size = path.stat().st_size
    if size not in types:
        raise UserError(f"{path} has {size} bytes, expected {2 * values} (fp16): export the checkpoint again")
    return np.memmap(path, types[size], "r", shape=(config.vocab_size, config.hidden_size))
