"""Checkpoint to ONNX artifact: two graphs, the token embeddings, and the checkpoint's side files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engines.checkpoint import SIDE_FILES, Checkpoint
from engines.errors import UserError
from engines.graphs.builder import Array, storable
from engines.graphs.decoder import EMBED_TOKENS, decoder
from engines.graphs.fused import CacheScales, Fused
from engines.graphs.narrow import NarrowFloats
from engines.graphs.standard import Standard
from engines.graphs.vision import vision
from engines.int8 import TINY
from engines.onnx_files import DECODER, EMBEDDING, VISION, EmbeddingTable, read_embedding
from engines.onnx_session import OnnxSession
from engines.processor import Inputs

ROWS = 16384  # converted at a time


def export(
    checkpoint: Checkpoint, out: Path, *, accuracy_level: int = 4, cache_prompts: Sequence[Inputs] = ()
) -> None:
    """Write `checkpoint` as an ONNX artifact for CPUs into the folder `out` (made if missing; its files are
    replaced).

    accuracy_level: of a checkpoint in 4 bits. 4 rounds activations to 8 bits, in the vision tower the weights
    as well; 0 computes in fp32 (slower).
    cache_prompts: if given, the cache holds keys and values in int8, scaled to what these prompts need.
    Equal checkpoints give equal bytes. Raises UserError when a bfloat16 weight does not fit fp16.
    """
    embedding = _shared_files(checkpoint, out)
    with Fused(out / VISION, int8=bool(checkpoint.quantization) and accuracy_level == 4) as graph:
        vision(graph, checkpoint)

    def write_decoder(cache_scales: CacheScales | None) -> None:
        with Fused(out / DECODER, accuracy_level=accuracy_level, cache_scales=cache_scales) as graph:
            decoder(graph, checkpoint, embedding)

    write_decoder(None)
    if cache_prompts:
        write_decoder(measure_cache(out, cache_prompts))


def export_standard(checkpoint: Checkpoint, out: Path, *, weights: str | None = None) -> None:
    """Write `checkpoint` as an ONNX artifact of standard operators in fp16 into the folder `out`.

    For GPUs and for TensorRT; like `export` otherwise. weights: fp8 or nvfp4, to which the decoder's are then
    rounded, which must be in 16 bits.
    """
    if weights and checkpoint.quantization:
        raise UserError(
            f"{checkpoint.path} is quantized: {weights} weights are made from a 16-bit checkpoint"
        )
    embedding = _shared_files(checkpoint, out)
    with Standard(out / VISION) as graph:
        vision(graph, checkpoint)
    with NarrowFloats(out / DECODER, weights) if weights else Standard(out / DECODER) as graph:
        decoder(graph, checkpoint, embedding)


def _shared_files(checkpoint: Checkpoint, out: Path) -> EmbeddingTable:
    """The files that every dialect has; returns the token embeddings."""
    out.mkdir(parents=True, exist_ok=True)
    _write_embedding(checkpoint.tensor(EMBED_TOKENS), out / EMBEDDING)
    for name in SIDE_FILES:
        if (source := checkpoint.path / name).is_file():
            shutil.copyfile(source, out / name)
    return read_embedding(out / EMBEDDING, checkpoint.config.text)


def measure_cache(artifact: Path, prompts: Sequence[Inputs]) -> NDArray[np.float32]:
    """The step in int8 of every channel of keys and values, f32 [layers, 2, kv heads * D].

    A 127th of the largest magnitude that the artifact, with its cache in fp32, stores for any of the prompts.
    """
    session = OnnxSession(artifact)
    peaks = []
    for prompt in prompts:
        length = len(prompt.input_ids)
        _, cache = session.prefill([prompt], capacity=length)
        stored = [value.numpy()[0] for value in cache.state.keys_values.values()]
        peaks.append([np.abs(value).max(axis=1).ravel() for value in stored])
    # [layers * 2, kv heads * D], each layer's keys before its values
    largest: NDArray[np.float32] = np.stack(peaks).max(axis=0)
    scales: NDArray[np.float32] = np.maximum(largest / np.float32(127), np.float32(TINY))
    return scales.reshape(-1, 2, largest.shape[1])


def _write_embedding(table: Array, path: Path) -> None:
    with path.open("wb") as file:
        for start in range(0, len(table), ROWS):
            file.write(np.ascontiguousarray(storable(table[start : start + ROWS], EMBED_TOKENS)).data)
