"""The vision tower as one ONNX graph, run once per image or video.

Inputs, for F frames (of a video: pairs of frames) of P patches each, in the order the patch merger wants:
  pixel_values         f32 [F, P, channels * temporal * patch * patch]
  patch_positions      i64 [P, 2]     row and column of every patch
  position_indices     i64 [4, P]     the four learned position embeddings around every patch
  position_weights     f32 [4, P, 1]  how much of each
Output: features f32 [1 + n, F * P / merge^2, out]: the token embeddings, then deepstack's n taps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.checkpoint import Checkpoint
from engines.config import VisionConfig
from engines.graphs.builder import MICROSOFT, Graph
from engines.int4 import Int4
from engines.int8 import nearest

VISUAL = "model.visual"
EPSILON = 1e-6  # of every LayerNorm, fixed in the architecture


def vision(checkpoint: Checkpoint, path: Path, *, int8: bool) -> None:
    """Write the vision tower of `checkpoint` to `path`, its weights beside it.

    int8: blocks and mergers multiply weights and activations in 8 bits; the patch embedding does not.
    """
    with Graph(path, int8=int8) as graph:
        _vision(graph, checkpoint)


def _vision(graph: Graph, checkpoint: Checkpoint) -> None:
    config = checkpoint.config.vision
    x = _patches(graph, checkpoint)
    rotary = _rotary(graph, config)
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
    graph.output("features", output, np.float32, [len(stacked), "M", config.out_hidden_size])


def rotary_frequencies(config: VisionConfig) -> npt.NDArray[np.float32]:
    """Angle per row and column, f32 [2, head_dim / 2]: half the pairs turn by row, the others by column."""
    quarter = config.hidden_size // config.num_heads // 4
    exponent = np.arange(quarter, dtype=np.float32) / np.float32(quarter)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponent
    return np.kron(np.eye(2, dtype=np.float32), frequencies)


def _patches(graph: Graph, checkpoint: Checkpoint) -> str:
    """Patch embeddings [F, P, C] (one product over both temporal planes) plus position embeddings."""
    config = checkpoint.config.vision
    weight = checkpoint.tensor(f"{VISUAL}.patch_embed.proj.weight").reshape(config.hidden_size, -1)
    bias = checkpoint.tensor(f"{VISUAL}.patch_embed.proj.bias")
    pixels = graph.input("pixel_values", np.float32, ["F", "P", weight.shape[1]])
    x = graph.linear(f"{VISUAL}.patch_embed", pixels, weight, bias)
    table = graph.matrix(f"{VISUAL}.pos_embed", checkpoint.tensor(f"{VISUAL}.pos_embed.weight"))
    indices = graph.input("position_indices", np.int64, [4, "P"])
    weights = graph.input("position_weights", np.float32, [4, "P", 1])
    # One corner at a time: gathering all four at once takes four times the memory.
    for corner in range(4):
        name, number = f"position.{corner}", graph.constant(corner)
        index = graph.op("Gather", [indices, number], name=f"{name}.index")
        amount = graph.op("Gather", [weights, number], name=f"{name}.weight")
        embedding = graph.op("Gather", [table, index], name=f"{name}.embedding")
        part = graph.op("Mul", [embedding, amount], name=f"{name}.part")
        x = graph.op("Add", [x, part], name=name)
    return x


def _rotary(graph: Graph, config: VisionConfig) -> list[str]:
    """What RotaryEmbedding takes after its input: a position id, and cos and sin f32 [P, D / 2]."""
    positions = graph.input("patch_positions", np.int64, ["P", 2])
    positions = graph.op("Cast", [positions], name="rotary.positions", to=1)
    frequencies = graph.vector("rotary.frequencies", rotary_frequencies(config))
    angles = graph.op("MatMul", [positions, frequencies], name="rotary.angles")
    tables = [graph.op("Cos", [angles], name="rotary.cos"), graph.op("Sin", [angles], name="rotary.sin")]
    return [graph.constant([0]), *tables]  # every frame starts at row 0 of the tables


def _block(graph: Graph, checkpoint: Checkpoint, prefix: str, x: str, rotary: list[str]) -> str:
    normed = _norm(graph, checkpoint, f"{prefix}.norm1", x)
    x = graph.op(
        "Add", [x, _attention(graph, checkpoint, f"{prefix}.attn", normed, rotary)], name=f"{prefix}.attended"
    )
    normed = _norm(graph, checkpoint, f"{prefix}.norm2", x)
    y = _linear(graph, checkpoint, f"{prefix}.mlp.linear_fc1", normed)
    y = _gelu_tanh(graph, f"{prefix}.mlp.gelu", y)
    y = _linear(graph, checkpoint, f"{prefix}.mlp.linear_fc2", y)
    return graph.op("Add", [x, y], name=prefix)


def _gelu_tanh(graph: Graph, name: str, x: str) -> str:
    """Gelu's tanh approximation as x * sigmoid(2 a (x + b x^3)): onnxruntime's own takes twice the time."""
    scale = 2 * (2 / np.pi) ** 0.5
    linear, cubic = (graph.constant(value, np.float32) for value in (scale, scale * 0.044715))
    square = graph.op("Mul", [x, x], name=f"{name}.square")
    square = graph.op("Mul", [square, cubic], name=f"{name}.cubic")
    slope = graph.op("Add", [square, linear], name=f"{name}.slope")
    inner = graph.op("Mul", [x, slope], name=f"{name}.inner")
    gate = graph.op("Sigmoid", [inner], name=f"{name}.gate")
    return graph.op("Mul", [x, gate], name=name)


def _attention(graph: Graph, checkpoint: Checkpoint, prefix: str, x: str, rotary: list[str]) -> str:
    """Every patch attends to its own frame: frames are the batch."""
    config = checkpoint.config.vision
    heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
    qkv = _linear(graph, checkpoint, f"{prefix}.qkv", x)
    parts = [f"{prefix}.{part}" for part in "qkv"]
    q, k, v = graph.ops("Split", [qkv], parts, axis=-1, num_outputs=3)
    shape: dict[str, Any] = {"num_heads": heads, "domain": MICROSOFT}
    q, k = (
        graph.op("RotaryEmbedding", [x, *rotary], name=f"{x}.rotated", rotary_embedding_dim=head_dim, **shape)
        for x in (q, k)
    )
    y = graph.op("MultiHeadAttention", [q, k, v], name=f"{prefix}.attention", scale=head_dim**-0.5, **shape)
    return _linear(graph, checkpoint, f"{prefix}.proj", y)


def _merger(graph: Graph, checkpoint: Checkpoint, prefix: str, x: str, *, merge_first: bool) -> str:
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


def _norm(graph: Graph, checkpoint: Checkpoint, name: str, x: str) -> str:
    scale, shift = (
        graph.vector(f"{name}.{part}", checkpoint.tensor(f"{name}.{part}")) for part in ("weight", "bias")
    )
    return graph.op("LayerNormalization", [x, scale, shift], name=name, axis=-1, epsilon=EPSILON)


def _linear(graph: Graph, checkpoint: Checkpoint, name: str, x: str) -> str:
    weight, bias = checkpoint.weight(name), checkpoint.tensor(f"{name}.bias")
    if graph.int8 and not isinstance(weight, Int4):
        return graph.linear(name, x, nearest(weight), bias)
    return graph.linear(name, x, weight, bias)
