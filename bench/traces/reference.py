"""Traces of a checkpoint run by transformers: hooks on its modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bench.traces.places import (
    LOGITS,
    MERGER,
    ROTARY,
    TOKENS,
    VISION_EMBEDDING,
    Place,
    Trace,
    added,
    decoder_layer,
    deepstack,
    vision_block,
)
from engines.processor import Inputs
from engines.reference import ReferenceSession


def trace(session: ReferenceSession, prompt: Inputs, given: Trace | None = None) -> Trace:
    """What `prompt` leaves at every place; with every part working on what the trace `given` passed on.

    One prompt with media of one kind, of no more tokens than pass the decoder at once.
    """
    found: Trace = {}
    with _hooked(session, found, given):
        length = len(prompt.input_ids)
        logits, _ = session.prefill([prompt], capacity=length, keep=length)
    found[LOGITS] = logits[0]
    return found


@contextmanager
def _hooked(session: ReferenceSession, found: Trace, given: Trace | None) -> Iterator[None]:
    """While it lasts, each place is noted, and what it passes on is what is `given` of it."""
    model = session.model.model
    text, visual, handles = model.language_model, model.visual, []

    def note(place: Place, value: torch.Tensor) -> torch.Tensor:
        """The value at a place, or what is to go on in its stead."""
        rows = value.detach().float()
        found[place] = rows.reshape(-1, rows.shape[-1]).numpy().copy()
        return value if given is None else torch.from_numpy(given[place]).to(value).reshape(value.shape)

    def after(module: Any, change: Callable[[Any], Any]) -> None:
        handles.append(module.register_forward_hook(lambda _module, _inputs, output: change(output)))

    def before(module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        def hook(_module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (change(inputs[0]), *inputs[1:])

        handles.append(module.register_forward_pre_hook(hook))

    def features(output: Any) -> Any:
        output.pooler_output = note(MERGER, output.pooler_output)
        taps = enumerate(output.deepstack_features)
        output.deepstack_features = [note(deepstack(tap), value) for tap, value in taps]
        return output

    def turns(output: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """cos and sin [1, S, D] repeat their halves: kept are [S, D / 2] of each, side by side."""
        half = output[0].shape[-1] // 2
        both = note(ROTARY, torch.cat([part[..., :half] for part in output], dim=-1))
        return tuple(torch.cat([part, part], dim=-1) for part in both.chunk(2, dim=-1))

    def addition(tap: int) -> None:
        """What enters the layer after `tap`, less what left that layer, is deepstack's."""
        left: list[torch.Tensor] = []

        def change(x: torch.Tensor) -> torch.Tensor:
            start = left.pop()
            return start + note(added(tap), x - start)

        after(text.layers[tap], left.append)
        before(text.layers[tap + 1] if tap + 1 < len(text.layers) else text.norm, change)

    def parts(place: Callable[[int, str], Place], number: int, attention: Any, mlp: Any) -> None:
        def attended(output: Any) -> Any:
            here = place(number, "attention")
            return (note(here, output[0]), *output[1:]) if isinstance(output, tuple) else note(here, output)

        after(attention, attended)
        after(mlp, lambda y: note(place(number, "mlp"), y))

    before(visual.blocks[0], lambda x: note(VISION_EMBEDDING, x))
    for number, block in enumerate(visual.blocks):
        parts(vision_block, number, block.attn, block.mlp)
    after(visual, features)
    after(text.embed_tokens, lambda y: note(TOKENS, y))
    after(text.rotary_emb, turns)
    for number, layer in enumerate(text.layers):
        parts(decoder_layer, number, layer.self_attn, layer.mlp)
    for tap in range(len(session.config.vision.deepstack_visual_indexes)):
        addition(tap)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
