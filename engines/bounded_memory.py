"""transformers' decoder on long prompts: activations of one chunk at a time, a cache that is taken once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

CHUNK = 512  # tokens of each sequence


class KeysAndValues(DynamicLayer):  # type: ignore[misc]
    """Those of one layer, [B, kv heads, tokens so far, D], at the beginning of memory for `capacity` tokens.

    Grown by copies, as transformers grows them, they would leave holes as large as themselves.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        batch, heads, _, size = key_states.shape
        self.memory = key_states.new_empty(2, batch, heads, self.capacity, size)
        self.keys, self.values = self.memory[..., :0, :]

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.keys.shape[-2]
        stop = held + key_states.shape[-2]
        self.memory[0, ..., held:stop, :] = key_states
        self.memory[1, ..., held:stop, :] = value_states
        self.keys, self.values = self.memory[..., :stop, :]
        return self.keys, self.values


def empty_cache(layers: int, capacity: int) -> Any:
    """transformers' cache for `capacity` tokens of each sequence."""
    return Cache(layers=[KeysAndValues(capacity) for _ in range(layers)])


def in_chunks(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Qwen3VLTextModel's forward for prompts of any length.

    Every chunk attends to itself and, through the cache, to all before it: the result is that of one pass.
    """

    def run(**inputs: Any) -> Any:
        size = inputs["inputs_embeds"].shape[1]
        if size <= CHUNK:
            return forward(**inputs)
        return BaseModelOutputWithPast(
            torch.cat([forward(**chunk).last_hidden_state for chunk in _chunks(**inputs)], dim=1),
            inputs["past_key_values"],
        )

    return run


def _chunks(
    *,
    inputs_embeds: Tensor,
    attention_mask: Tensor,
    position_ids: Tensor,
    visual_pos_masks: Tensor | None,
    deepstack_visual_embeds: list[Tensor] | None,
    **rest: Any,
) -> Iterator[dict[str, Any]]:
    size, held = inputs_embeds.shape[1], attention_mask.shape[1] - inputs_embeds.shape[1]
    for start in range(0, size, CHUNK):
        chunk = slice(start, min(start + CHUNK, size))
        visual, deepstack = None, None
        if visual_pos_masks is not None and deepstack_visual_embeds is not None:
            visual = visual_pos_masks[:, chunk]
            where = _places(visual_pos_masks)[:, chunk][visual]
            deepstack = [embeds[where] for embeds in deepstack_visual_embeds]
        yield {
            "inputs_embeds": inputs_embeds[:, chunk],
            "attention_mask": attention_mask[:, : held + chunk.stop],
            "position_ids": position_ids[..., chunk],
            "visual_pos_masks": visual,
            "deepstack_visual_embeds": deepstack,
            **rest,
        }


def _places(mask: Tensor) -> Tensor:
    """Where the embedding of each visual position stands among those of all sequences, int64 [B, S]."""
    return (mask.flatten().cumsum(0) - 1).view(mask.shape)
