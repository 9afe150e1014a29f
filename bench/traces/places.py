"""The places of a model where two variants of it are compared, in the order in which a prompt passes them.

A trace is what one prompt leaves at each of them. A run may be given another's trace: every part then works
on what that other model passed on, so what is found at a place was done there, and nothing adds up.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engines.config import ModelConfig
from engines.processor import Inputs


class Place(NamedTuple):
    """A place in plain words, numbered from 0 as in the names of tensors; its part, if it has two."""

    name: str
    part: str = ""


Trace = dict[Place, NDArray[np.floating[Any]]]

VISION_EMBEDDING, MERGER = Place("vision embedding"), Place("vision merger")
TOKENS, ROTARY, LOGITS = Place("token embedding"), Place("mRoPE"), Place("logits")
PARTS = ("attention", "mlp")


def deepstack(tap: int) -> Place:
    """Features of a merger of the vision tower, [V, H]."""
    return Place(f"deepstack {tap}", "features")


def added(tap: int) -> Place:
    """The same where the decoder adds them, to all its tokens [S, H]."""
    return Place(f"deepstack {tap}", "added")


def vision_block(block: int, part: str) -> Place:
    """What a part of a block adds to its residual stream, [patches, C]."""
    return Place(f"vision block {block}", part)


def decoder_layer(layer: int, part: str) -> Place:
    """What a part of a layer adds to its residual stream, [S, H]."""
    return Place(f"decoder layer {layer}", part)


def vision_places(config: ModelConfig) -> list[Place]:
    """Of the tower, in order; deepstack's features follow all blocks."""
    taps = len(config.vision.deepstack_visual_indexes)
    blocks = [vision_block(block, part) for block in range(config.vision.depth) for part in PARTS]
    return [VISION_EMBEDDING, *blocks, *map(deepstack, range(taps)), MERGER]


def decoder_places(config: ModelConfig) -> list[Place]:
    """Of the decoder, in order: embedding, angles of mRoPE, layers with what deepstack adds, logits."""
    taps = len(config.vision.deepstack_visual_indexes)
    places = [TOKENS, ROTARY]
    for layer in range(config.text.num_hidden_layers):
        places += [decoder_layer(layer, part) for part in PARTS]
        places += [added(layer)] if layer < taps else []
    return [*places, LOGITS]


def entering(trace: Trace, prompt: Inputs, config: ModelConfig) -> NDArray[np.floating[Any]]:
    """Embeddings [S, H] of text and media as they enter the decoder."""
    embeds = trace[TOKENS].copy()
    if MERGER in trace:
        embeds[np.isin(prompt.input_ids, (config.image_token_id, config.video_token_id))] = trace[MERGER]
    return embeds


def streams(trace: Trace, prompt: Inputs, config: ModelConfig) -> Trace:
    """The residual stream behind every part of a block or layer.

    The next norm divides by its size: an error in a token of a huge stream (an attention sink) hardly counts.
    """
    found: Trace = {}
    starts = (trace.get(VISION_EMBEDDING), entering(trace, prompt, config))
    for start, places in zip(starts, (vision_places(config), decoder_places(config)), strict=True):
        stream = start
        for place in places:
            if stream is not None and place in trace and place.part in (*PARTS, "added"):
                stream = found[place] = stream + trace[place]
    return found
