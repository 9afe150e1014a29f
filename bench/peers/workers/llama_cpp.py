"""llama.cpp, or its fork ik_llama.cpp, by the C interface both Python packages bring: llama_batch, greedy."""

from __future__ import annotations

import ctypes
import time
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.workers.protocol import About, Tokens, serve, size, stepwise

CONTEXT = 1024  # tokens of all sequences together; each has its equal part of the cache
TYPES = {0: ("f32", 4.0), 1: ("f16", 2.0), 8: ("q8_0", 34 / 32), 30: ("bf16", 2.0)}  # of ggml


class LlamaModel:
    """A GGUF file, and beside it mmproj.gguf, the vision tower."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.threads = threads
        self.fork = find_spec("ik_llama_cpp") is not None
        self.api = _api(self.fork)
        self.api.llama_backend_init()
        file, self.projector = directory / "model.gguf", directory / "mmproj.gguf"
        self.model = self.api.llama_model_load_from_file(
            str(file).encode(), self.api.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"{file} cannot be loaded")
        self.vocabulary = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self.model))
        self.batch = self.api.llama_batch_init(CONTEXT, 0, 1)
        self.sequences, self.context = 0, 0
        self._reset(1)
        options = self.api.llama_context_default_params()
        package = "ik-llama-cpp-python" if self.fork else "llama-cpp-python"
        kv, width = TYPES.get(options.type_k, (f"ggml type {options.type_k}", 2.0))
        vision = size(self.projector) if self.projector.exists() else 0
        self.about = About(f"{package} {version(package)}", kv, width, size(file), size(file), vision)

    def generate(self, prompts: list[Tokens], count: int) -> list[float]:
        """See Model.generate."""
        self._reset(len(prompts))
        length = 0

        def append(tokens: list[Tokens]) -> list[Tokens]:
            nonlocal length
            entries = [
                (token, length + i, sequence, i == len(row) - 1)
                for sequence, row in enumerate(tokens)
                for i, token in enumerate(row)
            ]
            length += len(tokens[0])
            return self._decode(entries)

        return stepwise(append, append, prompts, count)

    def _reset(self, sequences: int) -> None:
        """An empty cache for so many sequences."""
        if sequences == self.sequences:
            if self.fork:
                self.api.llama_kv_cache_clear(self.context)
            else:
                self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
            return
        if self.context:
            self.api.llama_free(self.context)
        options = self.api.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_seq_max = CONTEXT, CONTEXT, sequences
        options.n_threads = options.n_threads_batch = self.threads
        if self.fork and sequences > 1:
            options.flash_attn = False  # it aborts (S > 0) where a sequence's first keys are another's
        self.sequences, self.context = sequences, self.api.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("no context could be made")

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> list[Tokens]:
        """Passes (token, position, sequence, wants logits); the likeliest next token of every sequence."""
        self.batch.n_tokens = len(entries)
        for i, (token, position, sequence, last) in enumerate(entries):
            self.batch.token[i], self.batch.pos[i] = token, position
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, sequence
            self.batch.logits[i] = last
        if code := self.api.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode gave {code}")
        rows = [self.api.llama_get_logits_ith(self.context, i) for i, entry in enumerate(entries) if entry[3]]
        return [[int(np.ctypeslib.as_array(row, (self.vocabulary,)).argmax())] for row in rows]

    @cached_property
    def _tower(self) -> Any:
        from llama_cpp import mtmd_cpp as mtmd

        options = mtmd.mtmd_context_params_default()
        options.use_gpu, options.warmup, options.print_timings = False, False, False
        options.n_threads = self.threads
        tower = mtmd.mtmd_init_from_file(str(self.projector).encode(), self.model, options)
        if not tower:
            raise RuntimeError(f"{self.projector} cannot be loaded")
        return tower

    def vision(self, image: Path) -> float:
        """See Model.vision; by libmtmd, which splits the picture before the clock starts."""
        if self.fork:
            raise NotImplementedError("the Python package of the fork brings no vision")
        from llama_cpp import mtmd_cpp as mtmd

        tower = self._tower
        picture = _pixels(image)
        pixels = (ctypes.c_uint8 * picture.size).from_buffer_copy(picture.tobytes())
        bitmap = mtmd.mtmd_bitmap_init(picture.shape[1], picture.shape[0], pixels)
        marker = mtmd.mtmd_default_marker()
        prompt = mtmd.mtmd_input_text(marker, len(marker), False, True)
        chunks = mtmd.mtmd_input_chunks_init()
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if code := mtmd.mtmd_tokenize(tower, chunks, ctypes.byref(prompt), bitmaps, 1):
            raise RuntimeError(f"mtmd_tokenize gave {code}")
        parts = [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(mtmd.mtmd_input_chunks_size(chunks))]
        kind = mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE
        part = next(part for part in parts if mtmd.mtmd_input_chunk_get_type(part) == kind)
        start = time.perf_counter()
        if code := mtmd.mtmd_encode_chunk(tower, part):
            raise RuntimeError(f"mtmd_encode_chunk gave {code}")
        return time.perf_counter() - start


def _api(fork: bool) -> Any:
    """The C functions; the fork's package leaves one out."""
    if not fork:
        from llama_cpp import llama_cpp

        return llama_cpp
    from ik_llama_cpp import _ctypes_api

    return _ctypes_api


def _pixels(image: Path) -> Any:
    """RGB bytes [H, W, 3]."""
    from PIL import Image

    with Image.open(image) as opened:
        return np.asarray(opened.convert("RGB"))


if __name__ == "__main__":
    serve(LlamaModel)
