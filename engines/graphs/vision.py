"""The vision tower as one ONNX graph, run once per image or video.

Inputs, for F frames (of a video: pairs of frames; 1 when standard) of P patches each, in the merger's order:
  pixel_values         [F, P, channels * temporal * patch * patch]
  position_indices     i64 [4, P]     the four learned position embeddings around every patch
  position_weights     [4, P, 1]      how much of each
and, in each dialect's own form, where the patches stand. Floats are f32 when fused, f16 when standard.
Output: features [1 + n, F * P / merge^2, out]: the token embeddings, then deepstack's n taps.
"""

from __future__ import annotations

import numpy as np

from engines.checkpoint import Checkpoint
from engines.graphs import Dialect
from engines.int8 import nearest

VISUAL = "model.visual"
EPSILON = 1e-6  # of every LayerNorm, fixed in the architecture


def vision(graph: Dialect, checkpoint: Checkpoint) -> None:
    """Build the vision tower of `checkpoint` in `graph`.

    In a graph of 8-bit products that is blocks and mergers; the patch embedding is never rounded.
    """
    config = checkpoint.config.vision
    x = graph.residual(_patches(graph, checkpoint))
    rotary = graph.patch_places(config)
    features = []
    for layer in range(config.depth):
        x = _block(graph, checkpoint, f"{VISUAL}.blocks.{layer}", x, rotary)
        if layer in config.deepstack_visual_indexes:
            tap = config.deepstack_visual_indexes.index(layer)
            prefix = f"{VISUAL}.deepstack_merger_list.{tap}"
            features.append(_merger(graph, checkpoint, prefix, x, merge_first=True))
    embeds = _merger(graph, checkpoint, f"{VISUAL}.merger", x, merge_first=False)
    first = graph.constant([0])
    stacked = [graph.op("Unsqueeze", [y, first], name=f"{y}.stacked") for y in (embeds, *features)]
    output = graph.op("Concat", stacked, name="features", axis=0)
    graph.output("features", output, graph.activations, [len(stacked), "M", config.out_hidden_size])


def _patches(graph: Dialect, checkpoint: Checkpoint) -> str:
    """Patch embeddings [F, P, C] (one product over both temporal planes) plus position embeddings."""
    config = checkpoint.config.vision
    weight = checkpoint.tensor(f"{VISUAL}.patch_embed.proj.weight").reshape(config.hidden_size, -1)
    bias = checkpoint.tensor(f"{VISUAL}.patch_embed.proj.bias")
    pixels = graph.input("pixel_values", graph.activations, [graph.frames, "P", weight.shape[1]])
    x = graph.linear(f"{VISUAL}.patch_embed", pixels, weight, bias)
    table = graph.matrix(f"{VISUAL}.pos_embed", checkpoint.tensor(f"{VISUAL}.pos_embed.weight"))
    indices = graph.input("position_indices", np.int64, [4, "P"])
    weights = graph.input("position_weights", graph.activations, [4, "P", 1])
    # One corner at a time: gathering all four at once takes four times the memory.
    for corner in range(4):
        name, number = f"position.{corner}", graph.constant(corner)
        index = graph.op("Gather", [indices, number], name=f"{name}.index")
        amount = graph.op("Gather", [weights, number], name=f"{name}.weight")
        embedding = graph.op("Gather", [table, index], name=f"{name}.embedding")
        part = graph.op("Mul", [embedding, amount], name=f"{name}.part")
        x = graph.op("Add", [x, part], name=name)
    return x


def _block(graph: Dialect, checkpoint: Checkpoint, prefix: str, x: str, rotary: list[str]) -> str:
    normed = _norm(graph, checkpoint, f"{prefix}.norm1", x)
    y = _attention(graph, checkpoint, f"{prefix}.attn", normed, rotary)
    x = graph.add(f"{prefix}.attended", x, y)
    normed = _norm(graph, checkpoint, f"{prefix}.norm2", x)
    y = _linear(graph, checkpoint, f"{prefix}.mlp.linear_fc1", normed)
    y = graph.gelu_tanh(f"{prefix}.mlp.gelu", y)
    y = _linear(graph, checkpoint, f"{prefix}.mlp.linear_fc2", y)
    return graph.add(prefix, x, y)


def _attention(graph: Dialect, checkpoint: Checkpoint, prefix: str, x: str, rotary: list[str]) -> str:
    """Every patch attends to its own frame: frames are the batch."""
    qkv = _linear(graph, checkpoint, f"{prefix}.qkv", x)
    parts = graph.ops("Split", [qkv], [f"{prefix}.{part}" for part in "qkv"], axis=-1, num_outputs=3)
    y = graph.frame_attention(prefix, parts, rotary, checkpoint.config.vision)
    return _linear(graph, checkpoint, f"{prefix}.proj", y)


def _merger(graph: Dialect, checkpoint: Checkpoint, prefix: str, x: str, *, merge_first: bool) -> str:
    """merge^2 neighbouring patches become one token [M, out]; deepstack's mergers normalise after merging."""
    config = checkpoint.config.vision
    shape = graph.constant([-1, config.hidden_size * config.spatial_merge_size**2])
    if merge_first:
        x = graph.op("Reshape", [x, shape], name=f"{prefix}.merged")
    x = _norm(graph, checkpoint, f"{prefix}.norm", x)
    if not merge_first:
        x = graph.op("Reshape", [x, shape], name=f"{prefix}.merged")
    x = _linear(graph, checkpoint, f"{prefix}.linear_fc1", x)
    x = graph.op("Gelu", [x], name=f"{prefix}.gelu")
    return _linear(graph, checkpoint, f"{prefix}.linear_fc2", x)


def _norm(graph: Dialect, checkpoint: Checkpoint, name: str, x: str) -> str:
    scale, shift = (checkpoint.tensor(f"{name}.{part}") for part in ("weight", "bias"))
    return graph.layer_norm(name, x, scale, shift, EPSILON)


def _linear(graph: Dialect, checkpoint: Checkpoint, name: str, x: str) -> str:
    weight, bias = checkpoint.weight(name), checkpoint.tensor(f"{name}.bias")
    if graph.int8 and isinstance(weight, np.ndarray):
        return graph.linear(name, x, nearest(weight), bias)
    return graph.linear(name, x, weight, bias)
