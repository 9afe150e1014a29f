"""Runs an ONNX artifact with onnxruntime: numpy in, numpy out, the KV cache updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.cache import Cache, check_prefill
from engines.config import ModelConfig
from engines.onnx_files import DECODER, EMBEDDING, VISION, read_embedding
from engines.onnx_runtime import CPU, open_model, releasing
from engines.onnx_vision import VisionTokens, VisionTower
from engines.processor import Inputs

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Bound:
    """The decoder's arrays and keys and values, bound to its inputs and outputs: no copies on the way."""

    binding: Any
    arrays: Arrays
    keys_values: dict[str, Any]


@dataclass(frozen=True, eq=False)
class State:
    """Keys and values of every layer, and the arrays bound to them by the number of new tokens."""

    keys_values: dict[str, Any]
    steps: dict[int, Bound]


class OnnxSession:
    """A Session over vision.onnx and decoder.onnx."""

    def __init__(
        self,
        directory: Path,
        *,
        threads: int | None = None,
        providers: Sequence[str] = (CPU,),
        chunk: int = 512,
    ) -> None:
        """Load the artifact in `directory`; UserError when a file is missing or broken.

        threads: by default one for each core. chunk: tokens that pass the decoder at a time in prefill, over
        the whole batch; it bounds the memory of activations and attention scores.
        """
        directory = Path(directory)
        self.config = ModelConfig.load(directory)
        self.chunk = chunk
        self._embedding = read_embedding(directory / EMBEDDING, self.config.text)
        self._vision = VisionTower(directory / VISION, self.config, threads, providers)
        self._decoder = open_model(directory / DECODER, threads, providers)
        types = {value.name: value.type for value in self._decoder.get_inputs()}
        self.cache_dtype = np.int8 if types["past_key.0"] == "tensor(int8)" else np.float32

    def prefill(
        self, prompts: Sequence[Inputs], *, capacity: int, keep: int = 1
    ) -> tuple[NDArray[np.float32], Cache]:
        """See Session.prefill."""
        check_prefill(prompts, capacity, keep, self.config)
        lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        vision = [self._vision(prompt) for prompt in prompts]
        keys_values = self._allocate(len(prompts), capacity)
        kept = np.empty((len(prompts), keep, self.config.text.vocab_size), np.float32)
        last = lengths[:, None] - keep + np.arange(keep)  # the positions [B, keep] that get logits
        longest, size = int(lengths.max()), max(1, self.chunk // len(prompts))
        for start in range(0, longest, size):
            stop = min(start + size, longest)
            sequence, slot = np.nonzero((start <= last) & (last < stop))
            arrays = self._arrays(len(prompts), stop - start, len(sequence))
            arrays["logit_rows"][:] = sequence * (stop - start) + last[sequence, slot] - start
            arrays["seqlens_k"][:] = np.minimum(lengths, stop) - 1
            arrays["total_length"][...] = stop
            arrays["query_seqlens"][:] = np.clip(lengths - start, 0, stop - start)
            self._fill(arrays, prompts, vision, start, stop)
            self._decoder.run_with_iobinding(self._bind(arrays, keys_values).binding, releasing())
            kept[sequence, slot] = arrays["logits"]
        positions = np.array([prompt.next_position for prompt in prompts])
        return kept, Cache(lengths, positions, capacity, State(keys_values, {}))

    def extend(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """See Session.extend."""
        cache.check_extend(tokens)
        batch, size = tokens.shape
        step = self._step(cache.state, batch, size)
        step.arrays["inputs_embeds"][:] = self._embedding[tokens]
        step.arrays["position_ids"][:] = cache.positions[:, None] + np.arange(size)
        step.arrays["seqlens_k"][:] = cache.lengths + size - 1
        step.arrays["total_length"][...] = cache.lengths.max() + size
        self._decoder.run_with_iobinding(step.binding)
        cache.advance(size)
        return step.arrays["logits"].reshape(batch, size, -1).copy()

    def decode(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """See Session.decode."""
        return self.extend(tokens[:, None], cache)[:, 0]

    def _step(self, state: State, batch: int, size: int) -> Bound:
        """The arrays of a step of `size` tokens; made once for each size, so that no step allocates."""
        if size not in state.steps:
            arrays = self._arrays(batch, size, batch * size)
            arrays["logit_rows"][:] = np.arange(batch * size)
            arrays["query_seqlens"][:] = size
            state.steps[size] = self._bind(arrays, state.keys_values)
        return state.steps[size]

    def _fill(
        self,
        arrays: Arrays,
        prompts: Sequence[Inputs],
        vision: Sequence[VisionTokens],
        start: int,
        stop: int,
    ) -> None:
        """Embeddings, positions and deepstack features of tokens start to stop of every prompt."""
        embeds = arrays["inputs_embeds"]
        if any(len(tokens.where) for tokens in vision):
            taps = len(self.config.vision.deepstack_visual_indexes)
            arrays["deepstack"] = np.zeros((taps, *embeds.shape), np.float32)
        for row, (prompt, tokens) in enumerate(zip(prompts, vision, strict=True)):
            ids = prompt.input_ids[start:stop]
            embeds[row, : len(ids)] = self._embedding[ids]
            arrays["position_ids"][:, row, : len(ids)] = prompt.positions[:, start:stop]
            low, high = np.searchsorted(tokens.where, [start, stop])
            if low < high:
                slots = tokens.where[low:high] - start
                embeds[row, slots] = tokens.features[0, low:high]
                arrays["deepstack"][:, row, slots] = tokens.features[1:, low:high]

    def _arrays(self, batch: int, size: int, logit_rows: int) -> Arrays:
        """Zeroed decoder inputs for `size` new tokens of every sequence, and room for the logits."""
        text, taps = self.config.text, len(self.config.vision.deepstack_visual_indexes)
        return {
            "inputs_embeds": np.zeros((batch, size, text.hidden_size), np.float32),
            "position_ids": np.zeros((3, batch, size), np.int64),
            "deepstack": np.zeros((taps, 1, 1, text.hidden_size), np.float32),
            "seqlens_k": np.zeros(batch, np.int32),
            "total_length": np.zeros((), np.int32),
            "query_seqlens": np.zeros(batch, np.int32),
            "logit_rows": np.zeros(logit_rows, np.int64),
            "logits": np.zeros((logit_rows, text.vocab_size), np.float32),
        }

    def _allocate(self, batch: int, capacity: int) -> dict[str, Any]:
        """Keys and values of every layer, f32 or (as the graph says) int8 [B, kv heads, capacity, D].

        The system hands out zeros page by page as they are written, so unused capacity costs little memory.
        """
        text = self.config.text
        shape = (batch, text.num_key_value_heads, capacity, text.head_dim)
        names = [f"{kind}.{layer}" for layer in range(text.num_hidden_layers) for kind in ("key", "value")]
        return {name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, self.cache_dtype)) for name in names}

    def _bind(self, arrays: Arrays, keys_values: dict[str, Any]) -> Bound:
        binding = self._decoder.io_binding()
        for name, array in arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            if name == "logits":
                binding.bind_ortvalue_output(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name, value in keys_values.items():
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        return Bound(binding, arrays, keys_values)
