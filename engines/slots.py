"""Continuous batching: sequences side by side in one allocation, each beginning and ending when it likes.

Every sequence has a row of the keys and values. The decoding ones are kept in the first rows, so a step runs
over a view of them and a prompt's next chunk over a view of its own row: nothing is copied on the way (Orca,
OSDI 2022, without its pages). A row outlives its sequence: what it holds is the beginning of the next turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from engines.config import ModelConfig
from engines.errors import UserError
from engines.onnx_runtime import CPU, MEMORY
from engines.onnx_session import Bound, OnnxSession
from engines.onnx_vision import VisionTokens
from engines.processor import Inputs


@dataclass(eq=False)
class Slot:
    """A row and what it holds.

    content int64 [capacity]: what each cached token is, see content_ids; length: how many are cached;
    position: rotary position of the next token; used: when it last began or ended, in order.
    """

    row: int
    content: NDArray[np.int64]
    length: int = 0
    position: int = 0
    used: int = 0
    prompt: Inputs | None = None
    vision: VisionTokens | None = None


class Slots(Protocol):
    """Sequences that are decoded together. Not for several threads, but for `see`."""

    config: ModelConfig
    capacity: int

    @property
    def active(self) -> Sequence[Slot]:
        """The decoding sequences, in the order of `decode`."""

    def see(self, prompt: Inputs) -> VisionTokens:
        """What the vision tower makes of the prompt's media; may run beside everything else."""

    def open(self, prompt: Inputs, vision: VisionTokens) -> Slot | None:
        """A slot for a prompt, its length telling how much of it was remembered; None when all are busy."""

    def prefill(self, slot: Slot, limit: int) -> NDArray[np.float32] | None:
        """Compute at most `limit` tokens of a prompt: at its end logits f32 [V], and the slot is active."""

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append tokens int64 [active], one to each; logits f32 [active, V], valid until the next call."""

    def close(self, slot: Slot) -> None:
        """End a sequence, active or not."""


@dataclass(eq=False)
class OnnxSlots:
    """Slots over an ONNX artifact on the CPU: `count` rows of `capacity` tokens."""

    session: OnnxSession
    count: int
    capacity: int
    _slots: list[Slot] = field(init=False)
    _busy: set[Slot] = field(init=False, default_factory=set)
    _active: int = field(init=False, default=0)
    _clock: int = field(init=False, default=0)
    _steps: dict[int, Bound] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.config = self.session.config
        text = self.config.text
        if self.session.memory != MEMORY[CPU]:
            raise UserError(
                "slots are in the memory of the CPU: this artifact or provider keeps its cache elsewhere"
            )
        if not 1 <= self.capacity <= text.max_position_embeddings or self.count < 1:
            raise UserError(
                f"{self.count} slots of {self.capacity} tokens: expected one or more of at most "
                f"{text.max_position_embeddings}"
            )
        self._slots = [Slot(row, np.empty(self.capacity, np.int64)) for row in range(self.count)]
        self._keys_values = self.session.cache_arrays(self.count, self.capacity)

    @property
    def active(self) -> Sequence[Slot]:
        """See Slots.active."""
        return self._slots[: self._active]

    def see(self, prompt: Inputs) -> VisionTokens:
        """See Slots.see."""
        return self.session.vision(prompt)

    def open(self, prompt: Inputs, vision: VisionTokens) -> Slot | None:
        """See Slots.open. UserError when the prompt leaves no room for an answer.

        A conversation goes on in its own row; of any other row, busy or not, the common beginning is copied
        into the row that was unused the longest.
        """
        if len(prompt.input_ids) >= self.capacity:
            raise UserError(
                f"a prompt of {len(prompt.input_ids)} tokens: the context has {self.capacity}; shorten it"
            )
        idle = [slot for slot in self._slots if slot not in self._busy]
        if not idle:
            return None
        content = content_ids(prompt, self.config)
        common = {slot: _common(slot.content[: slot.length], content[:-1]) for slot in self._slots}
        best = max(self._slots, key=lambda slot: common[slot])
        goes_on = best in idle and 2 * common[best] >= best.length > 0
        slot = best if goes_on else min(idle, key=lambda slot: slot.used)
        slot.length = common[slot] if slot is best else 0
        self._swap(slot.row, self._active)
        if slot is not best:
            for cache in self._keys_values.values():
                cache[slot.row, :, : common[best]] = cache[best.row, :, : common[best]]
        slot.length = common[best]
        slot.content[: len(content)] = content
        slot.prompt, slot.vision, slot.position = prompt, vision, prompt.next_position
        self._touch(slot)
        self._busy.add(slot)
        return slot

    def prefill(self, slot: Slot, limit: int) -> NDArray[np.float32] | None:
        """See Slots.prefill."""
        assert slot.prompt is not None
        assert slot.vision is not None
        start, end = slot.length, len(slot.prompt.input_ids)
        stop = min(start + limit, end)
        arrays = self.session.arrays(1, stop - start, self.capacity, 1)
        arrays["logit_rows"][:] = stop - start - 1
        positions = self.session.fill(arrays, [slot.prompt], [slot.vision], start, stop)
        self.session.inputs.place(arrays, np.array([start]), np.array([stop - start]), positions)
        view, options = self._view(slot.row, slot.row + 1), self.session.after_prefill
        self.session.run(self.session.bind(self.session.decoder, arrays, view, options))
        slot.length = stop
        if stop < end:
            return None
        slot.prompt = slot.vision = None
        self._swap(slot.row, self._active)
        self._active += 1
        logits: NDArray[np.float32] = arrays["logits"][0]
        return logits

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """See Slots.decode."""
        step = self._step(len(tokens))
        lengths = np.array([slot.length for slot in self.active])
        if lengths.max() >= self.capacity:
            raise UserError(f"a sequence is full at {self.capacity} tokens: close it")
        step.arrays["inputs_embeds"][:, 0] = self.session.embedding[tokens]
        positions = np.array([[slot.position] for slot in self.active])
        self.session.inputs.place(step.arrays, lengths, np.ones_like(lengths), np.stack([positions] * 3))
        self.session.run(step)
        for slot, token in zip(self.active, tokens, strict=True):
            slot.content[slot.length] = token
            slot.length += 1
            slot.position += 1
        logits: NDArray[np.float32] = step.arrays["logits"]
        return logits

    def close(self, slot: Slot) -> None:
        """See Slots.close."""
        if slot.row < self._active:
            self._active -= 1
            self._swap(slot.row, self._active)
        slot.prompt = slot.vision = None
        self._busy.remove(slot)
        self._touch(slot)

    def _touch(self, slot: Slot) -> None:
        self._clock += 1
        slot.used = self._clock

    def _step(self, batch: int) -> Bound:
        """The arrays of a step of `batch` sequences; made once for each size, so that no step allocates."""
        if batch not in self._steps:
            arrays = self.session.arrays(batch, 1, self.capacity, batch)
            arrays["logit_rows"][:] = np.arange(batch)
            self._steps[batch] = self.session.bind(self.session.step, arrays, self._view(0, batch))
        return self._steps[batch]

    def _view(self, first: int, last: int) -> dict[str, Any]:
        """Keys and values of some rows, in place."""
        return {
            name: ort.OrtValue.ortvalue_from_numpy(cache[first:last])
            for name, cache in self._keys_values.items()
        }

    def _swap(self, i: int, j: int) -> None:
        """Exchange two rows: it costs some steps once, a gap between decoding rows would cost each step."""
        if i == j:
            return
        a, b = self._slots[i], self._slots[j]
        for cache in self._keys_values.values():
            kept = cache[i, :, : a.length].copy()
            cache[i, :, : b.length] = cache[j, :, : b.length]
            cache[j, :, : a.length] = kept
        self._slots[i], self._slots[j] = b, a
        a.row, b.row = j, i


def content_ids(prompt: Inputs, config: ModelConfig) -> NDArray[np.int64]:
    """A prompt's tokens by content, int64 [S]: text by its ids, vision tokens by what is seen, below zero.

    Two prompts that begin with the same numbers have the same keys and values there.
    """
    ids = prompt.input_ids.copy()
    merge = config.vision.spatial_merge_size**2
    seen = [
        -1 - (int.from_bytes(media.digest[:8]) >> 2) - np.arange(int(np.prod(media.grid)) // merge)
        for media in prompt.media
    ]
    if seen:
        ids[np.isin(ids, (config.image_token_id, config.video_token_id))] = np.concatenate(seen)
    return ids


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Length of the common beginning."""
    size = min(len(a), len(b))
    different = a[:size] != b[:size]
    return int(different.argmax()) if different.any() else size
