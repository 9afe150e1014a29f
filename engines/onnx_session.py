"""Runs an ONNX artifact with onnxruntime: numpy in, numpy out, the KV cache updated in place."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.cache import Cache, check_prefill, untouched_zeros
from engines.config import ModelConfig
from engines.device import find_gpu
from engines.engine_files import ENGINE_FACTS, EngineFacts
from engines.errors import UserError
from engines.onnx_files import DECODER, EMBEDDING, HEAD, STEP, VISION, read_embedding
from engines.onnx_inputs import Arrays, DecoderInputs, FusedInputs, StandardInputs
from engines.onnx_runtime import (
    CPU,
    MEMORY,
    REPLAY,
    check_provider,
    engine_version,
    open_model,
    recorded_as,
    releasing,
)
from engines.onnx_vision import VisionTokens, VisionTower
from engines.processor import Inputs

ROOM = 512  # a GPU's caches grow in such steps, so that one conversation's serves the next
CACHE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}


@dataclass(frozen=True, eq=False)
class Bound:
    """Arrays of the host, their copies on the device, and the decoder's inputs and outputs bound to those.

    Addresses stay, so a device may replay what it recorded of an earlier run. It then touches nothing but its
    own memory: inputs are copied there before, logits from there afterwards.
    """

    graph: Any
    binding: Any
    arrays: Arrays
    copies: dict[str, Any]
    logits: Any
    options: Any


@dataclass(frozen=True, eq=False)
class State:
    """Keys and values of every layer, and the arrays bound to them by the number of new tokens."""

    keys_values: dict[str, Any]
    steps: dict[int, Bound]


class OnnxSession:
    """A Session over vision.onnx and decoder.onnx."""

    def __init__(
        self, directory: Path, *, threads: int | None = None, provider: str = CPU, chunk: int = 512
    ) -> None:
        """Load the artifact in `directory`; UserError when a file is missing, broken or for another device.

        threads: by default one for each core. provider: onnxruntime's name of what runs the graphs; engines
        bring their own. chunk: tokens that pass the decoder at a time in prefill, over the whole batch; it
        bounds the memory of activations and attention scores.
        """
        directory = Path(directory)
        self.config = ModelConfig.load(directory)
        self.engines, self.vision_s = None, 0.0
        if (directory / ENGINE_FACTS).exists():
            self.engines = EngineFacts.read(directory)
            self.engines.check_device(directory, find_gpu())
            provider = self.engines.by.provider
            self.engines.check_version(directory, engine_version(provider))
            chunk = min(chunk, self.engines.chunk)
        else:
            check_provider(provider)
        self.chunk, self.memory, self.replays = chunk, MEMORY[provider], provider in REPLAY
        self.after_prefill = recorded_as(-1) if self.replays else releasing() if provider == CPU else None
        self._numbers, self._spare = count(1), dict[tuple[int, int], State]()
        self.embedding = read_embedding(directory / EMBEDDING, self.config.text)
        patches = self.engines.patches if self.engines else None
        self.vision = VisionTower(directory / VISION, self.config, threads, provider, patches)
        apart = (directory / STEP).exists()
        replay = self.replays and not apart
        self.decoder = self.step = open_model(directory / DECODER, threads, provider, replay=replay)
        if apart:
            self.step = open_model(directory / STEP, threads, provider, replay=self.replays)
        graph_inputs = {value.name: value for value in self.decoder.get_inputs()}
        cache = graph_inputs["past_key.0"]
        self.cache_dtype = CACHE_TYPES[cache.type]
        self.context = cache.shape[2] if isinstance(cache.shape[2], int) else None  # an engine's is fixed
        self.shared = {}  # by every engine
        if HEAD in graph_inputs:
            self.shared[HEAD] = ort.OrtValue.ortvalue_from_numpy(np.asarray(self.embedding), *self.memory)
        standard = "attention_mask" in graph_inputs
        self.inputs: DecoderInputs = (StandardInputs if standard else FusedInputs)(self.config)

    def prefill(
        self, prompts: Sequence[Inputs], *, capacity: int, keep: int = 1
    ) -> tuple[NDArray[np.float32], Cache]:
        """See Session.prefill."""
        check_prefill(prompts, capacity, keep, self.config)
        room = self._room(len(prompts), capacity)
        lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        began = time.perf_counter()
        vision = [self.vision(prompt) for prompt in prompts]
        self.vision_s = time.perf_counter() - began
        state = self._state(len(prompts), room)
        kept = np.empty((len(prompts), keep, self.config.text.vocab_size), np.float32)
        last = lengths[:, None] - keep + np.arange(keep)  # the positions [B, keep] that get logits
        longest, size = int(lengths.max()), max(1, self.chunk // len(prompts))
        for start in range(0, longest, size):
            stop = min(start + size, longest)
            sequence, slot = np.nonzero((start <= last) & (last < stop))
            arrays = self.arrays(len(prompts), stop - start, room, max(1, len(sequence)))
            arrays["logit_rows"][: len(sequence)] = sequence * (stop - start) + last[sequence, slot] - start
            positions = self.fill(arrays, prompts, vision, start, stop)
            counts = np.clip(lengths - start, 0, stop - start)
            self.inputs.place(arrays, np.minimum(lengths, start), counts, positions)
            self.run(self.bind(self.decoder, arrays, state.keys_values, self.after_prefill))
            kept[sequence, slot] = arrays["logits"][: len(sequence)]
        positions = np.array([prompt.next_position for prompt in prompts])
        cache = Cache(lengths, positions, capacity, state)
        if self.replays:
            weakref.finalize(cache, self._leave, (len(prompts), room), state).atexit = False
        return kept, cache

    def extend(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """See Session.extend."""
        cache.check_extend(tokens)
        batch, size = tokens.shape
        step = self._step(cache, size)
        step.arrays["inputs_embeds"][:] = self.embedding[tokens]
        positions = np.broadcast_to(cache.positions[:, None] + np.arange(size), (3, batch, size))
        self.inputs.place(step.arrays, cache.lengths, np.full(batch, size), positions)
        self.run(step)
        cache.advance(size)
        return step.arrays["logits"].reshape(batch, size, -1).copy()

    def decode(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """See Session.decode."""
        return self.extend(tokens[:, None], cache)[:, 0]

    def forget(self) -> None:
        """See Session.forget."""
        self.vision.forget()

    def _step(self, cache: Cache, size: int) -> Bound:
        """The arrays of a step of `size` tokens; made once for each size, so that no step allocates."""
        state, rows = cache.state, len(cache.lengths) * size
        if size not in state.steps:
            room = self._room(len(cache.lengths), cache.capacity)
            arrays = self.arrays(len(cache.lengths), size, room, rows)
            arrays["logit_rows"][:] = np.arange(rows)
            graph = self.step if size == 1 else self.decoder
            options = recorded_as(next(self._numbers)) if self.replays else None
            state.steps[size] = self.bind(graph, arrays, state.keys_values, options)
        found: Bound = state.steps[size]
        return found

    def fill(
        self,
        arrays: Arrays,
        prompts: Sequence[Inputs],
        vision: Sequence[VisionTokens],
        start: int,
        stop: int,
    ) -> NDArray[np.int64]:
        """Embeddings and deepstack features of tokens start to stop; returns their positions [3, B, S]."""
        embeds = arrays["inputs_embeds"]
        positions = np.zeros((3, *embeds.shape[:2]), np.int64)
        if any(len(tokens.where) for tokens in vision):
            taps = len(self.config.vision.deepstack_visual_indexes)
            arrays["deepstack"] = np.zeros((taps, *embeds.shape), embeds.dtype)
        for row, (prompt, tokens) in enumerate(zip(prompts, vision, strict=True)):
            ids = prompt.input_ids[start:stop]
            embeds[row, : len(ids)] = self.embedding[ids]
            positions[:, row, : len(ids)] = prompt.positions[:, start:stop]
            low, high = np.searchsorted(tokens.where, [start, stop])
            if low < high:
                slots = tokens.where[low:high] - start
                embeds[row, slots] = tokens.features[0, low:high]
                arrays["deepstack"][:, row, slots] = tokens.features[1:, low:high]
        return positions

    def arrays(self, batch: int, size: int, capacity: int, logit_rows: int) -> Arrays:
        """Zeroed decoder inputs for `size` new tokens of every sequence, and room for the logits."""
        return self.inputs.arrays(batch, size, capacity) | {
            "logit_rows": np.zeros(logit_rows, np.int64),
            "logits": np.zeros((logit_rows, self.config.text.vocab_size), np.float32),
        }

    def _room(self, batch: int, capacity: int) -> int:
        """Tokens to allocate for each sequence; UserError when engines were not built for so many."""
        if self.context and capacity > self.context:
            raise UserError(f"{capacity} tokens: these engines were built for a context of {self.context}")
        if self.engines and batch > self.engines.batch:
            raise UserError(f"{batch} sequences: these engines were built for {self.engines.batch} together")
        if self.context or not self.replays:
            return self.context or capacity
        return -(-capacity // ROOM) * ROOM

    def _state(self, batch: int, capacity: int) -> State:
        """Room for keys and values: on a GPU the last that nobody holds any more, if it is as large, since
        its steps are recorded."""
        return self._spare.pop((batch, capacity), None) or State(self._allocate(batch, capacity), {})

    def _leave(self, size: tuple[int, int], state: State) -> None:
        self._spare = {size: state}

    def cache_arrays(self, batch: int, capacity: int) -> Arrays:
        """Keys and values of every layer, f32, f16 or int8 as the graph says [B, kv heads, capacity, D].

        Memory is taken page by page as they are written, so unused capacity costs none.
        """
        text = self.config.text
        shape = (batch, text.num_key_value_heads, capacity, text.head_dim)
        names = [f"{kind}.{layer}" for layer in range(text.num_hidden_layers) for kind in ("key", "value")]
        return {name: untouched_zeros(shape, self.cache_dtype) for name in names}

    def _allocate(self, batch: int, capacity: int) -> dict[str, Any]:
        """The same where the graphs read them."""
        arrays = self.cache_arrays(batch, capacity)
        return {name: ort.OrtValue.ortvalue_from_numpy(array, *self.memory) for name, array in arrays.items()}

    def bind(self, graph: Any, arrays: Arrays, keys_values: dict[str, Any], options: Any = None) -> Bound:
        """Everything that a run of `graph` needs, in place."""
        binding, copies = graph.io_binding(), {}
        logits = ort.OrtValue.ortvalue_from_numpy(arrays["logits"], *self.memory)
        binding.bind_ortvalue_output("logits", logits)
        for name, array in arrays.items():
            if name != "logits":
                copies[name] = ort.OrtValue.ortvalue_from_shape_and_type(
                    array.shape, array.dtype.type, *self.memory
                )
                binding.bind_ortvalue_input(name, copies[name])
        for name, value in self.shared.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in keys_values.items():
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"present_{name}", value)
        return Bound(graph, binding, arrays, copies, logits, options)

    def run(self, bound: Bound) -> None:
        """One pass: `bound.arrays` in, its logits and the cache out."""
        for name, copy in bound.copies.items():
            copy.update_inplace(bound.arrays[name])
        bound.graph.run_with_iobinding(bound.binding, bound.options)
        if bound.logits.data_ptr() != bound.arrays["logits"].ctypes.data:  # a CPU's graph writes to the array
            bound.arrays["logits"][:] = bound.logits.numpy()
