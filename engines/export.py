"""Checkpoint to ONNX artifact: two graphs, the token embeddings, and the checkpoint's side files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from engines.checkpoint import SIDE_FILES, Checkpoint
from engines.graphs.builder import Array, storable
from engines.graphs.decoder import EMBED_TOKENS, decoder
from engines.graphs.vision import vision
from engines.onnx_files import DECODER, EMBEDDING, VISION, read_embedding

ROWS = 16384  # converted at a time


def export(checkpoint: Checkpoint, out: Path, *, accuracy_level: int = 4) -> None:
    """Write `checkpoint` as an ONNX artifact into the folder `out` (made if missing; its files are replaced).

    accuracy_level: 4 multiplies Int4 weights with activations quantised to int8, 0 with fp32 ones (slower).
    Equal checkpoints give equal bytes. Raises UserError when a bfloat16 weight does not fit fp16.
    """
    out.mkdir(parents=True, exist_ok=True)
    _write_embedding(checkpoint.tensor(EMBED_TOKENS), out / EMBEDDING)
    embedding = read_embedding(out / EMBEDDING, checkpoint.config.text)
    vision(checkpoint, out / VISION)
    decoder(checkpoint, out / DECODER, embedding, accuracy_level=accuracy_level)
    for name in SIDE_FILES:
        if (source := checkpoint.path / name).is_file():
            shutil.copyfile(source, out / name)


def _write_embedding(table: Array, path: Path) -> None:
    with path.open("wb") as file:
        for start in range(0, len(table), ROWS):
            file.write(np.ascontiguousarray(storable(table[start : start + ROWS], EMBED_TOKENS)).data)
