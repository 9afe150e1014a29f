"""A long prompt through transformers' decoder in chunks: only one chunk's activations are held at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

CHUNK = 1024  # tokens of each sequence


def in_chunks(forward: Callable[..., Any], config: Any) -> Callable[..., Any]:
    """Qwen3VLTextModel's forward for prompts of any length.

    Every chunk attends to itself and, through the cache, to all before it: the result is that of one pass.
    """

    def run(
        *,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past_key_values: Any,
        visual_pos_masks: Tensor | None,
        deepstack_visual_embeds: list[Tensor] | None,
        **rest: Any,
    ) -> Any:
        past = DynamicCache(config=config) if past_key_values is None else past_key_values
        size, held = inputs_embeds.shape[1], attention_mask.shape[1] - inputs_embeds.shape[1]
        seen = None if visual_pos_masks is None else _places(visual_pos_masks)
        hidden = []
        for start in range(0, size, CHUNK):
            chunk = slice(start, min(start + CHUNK, size))
            visual, deepstack = None, None
            if visual_pos_masks is not None and seen is not None and deepstack_visual_embeds is not None:
                visual = visual_pos_masks[:, chunk]
                deepstack = [embeds[seen[:, chunk][visual]] for embeds in deepstack_visual_embeds]
            output = forward(
                inputs_embeds=inputs_embeds[:, chunk],
                attention_mask=attention_mask[:, : held + chunk.stop],
                position_ids=position_ids[..., chunk],
                past_key_values=past,
                visual_pos_masks=visual,
                deepstack_visual_embeds=deepstack,
                **rest,
            )
            hidden.append(output.last_hidden_state)
        return BaseModelOutputWithPast(torch.cat(hidden, dim=1), past)

    return run


def _places(mask: Tensor) -> Tensor:
    """Where the embedding of each visual position stands among those of all sequences, int64 [B, S]."""
    return (mask.flatten().cumsum(0) - 1).view(mask.shape)
