"""One decoder layer at a time over the whole calibration set, pausing where its linears are quantised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import linear
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextRotaryEmbedding

from engines.checkpoint import Checkpoint
from engines.safetensors import read_safetensors
from quantize.capture import Activations, to_torch


@dataclass(frozen=True)
class Group:
    """Linears that read the same input, and the norm or linear that makes it."""

    source: str
    linears: tuple[str, ...]


GROUPS = (
    Group("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    Group("self_attn.v_proj", ("self_attn.o_proj",)),
    Group("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    Group("mlp.up_proj", ("mlp.down_proj",)),
)
LINEARS = tuple(name for group in GROUPS for name in group.linears)
BLOCK = 512  # columns of a second moment
TINY = torch.finfo(torch.float32).tiny

Tensors = dict[str, torch.Tensor]


class Statistics:
    """Second moment X^T X / T [K, K] and mean |x| [K] of the T inputs a group of linears reads.

    What o_proj and down_proj compute is added to the residual stream, which the next norm divides by its
    size. So their inputs are divided by it too: otherwise a few tokens with a huge stream (often the first,
    an attention sink) would decide the codes, though errors in them are the ones that matter least.

    """

    def __init__(self, width: int, tokens: int) -> None:
        self.tokens = tokens
        self.magnitude = torch.zeros(width)
        self._upper = torch.zeros(width, width)

    def add(self, x: torch.Tensor) -> None:
        """Counts some of the inputs, x [t, K]."""
        for i in range(0, x.shape[1], BLOCK):  # the blocks on and above the diagonal: half the work
            self._upper[i : i + BLOCK, i:].addmm_(x[:, i : i + BLOCK].T, x[:, i:], alpha=1 / self.tokens)
        self.magnitude.add_(x.abs().sum(0), alpha=1 / self.tokens)

    @property
    def hessian(self) -> torch.Tensor:
        """The second moment, both triangles."""
        return self._upper.triu() + self._upper.triu(1).T


def layer_prefix(index: int) -> str:
    """What the names of a decoder layer's tensors begin with."""
    return f"model.language_model.layers.{index}."


def load_layer(checkpoint: Checkpoint, index: int) -> Tensors:
    """Copies of a decoder layer's tensors in the checkpoint's type, by their names within the layer."""
    prefix, tensors = layer_prefix(index), {}
    for shard in checkpoint.shards:  # mapped anew: pages read through a map that stays would stay resident
        for name, array in read_safetensors(shard).items():
            if name.startswith(prefix):
                tensors[name.removeprefix(prefix)] = to_torch(array)
    return tensors


class Decoder:
    """transformers' decoder layer in float32, filled with one layer's tensors at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = Qwen3VLConfig.from_pretrained(checkpoint.path).text_config
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.layer = Qwen3VLTextDecoderLayer(config, layer_idx=0).eval()
        self.rotary = Qwen3VLTextRotaryEmbedding(config)
        # The layer stops short of these two, so that their inputs can be kept.
        self.layer.self_attn.o_proj = self.layer.mlp.down_proj = torch.nn.Identity()

    @torch.no_grad()
    def run(
        self,
        tensors: Tensors,
        activations: Activations,
        replace: Callable[[Group, Statistics], Tensors] = lambda group, found: {},
    ) -> torch.Tensor:
        """Hidden states [T, H] after the layer.

        Args:
            replace: called for each of GROUPS in turn with the statistics of its inputs, all earlier groups
                replaced already; gives the weights to go on with, in float32.

        """
        weights = {name: tensor.float() for name, tensor in tensors.items()}
        o_proj, down_proj = "self_attn.o_proj.weight", "mlp.down_proj.weight"
        layer, stream = self.layer, activations.hidden.clone()
        batches = list(activations.batches())

        def enter(group: Group) -> Statistics:
            fill(weights)
            return Statistics(weights[f"{group.linears[0]}.weight"].shape[1], len(stream))

        def fill(weights: Tensors) -> None:
            modules = {name: weight for name, weight in weights.items() if name not in (o_proj, down_proj)}
            layer.load_state_dict(modules, assign=True)

        found = enter(GROUPS[0])
        for rows, _ in batches:
            found.add(layer.input_layernorm(stream[rows]))
        weights |= replace(GROUPS[0], found)

        found = enter(GROUPS[1])
        heads = torch.empty(len(stream), weights[o_proj].shape[1])
        for rows, sequences in batches:
            x = layer.input_layernorm(stream[rows]).unflatten(0, (sequences, -1))
            positions = activations.positions[:, rows].reshape(3, sequences, -1)
            heads[rows] = layer.self_attn(x, self.rotary(x, positions), attention_mask=None)[0].flatten(0, 1)
            found.add(heads[rows] / size(stream[rows] + linear(heads[rows], weights[o_proj])))
        weights |= replace(GROUPS[1], found)

        found = enter(GROUPS[2])
        for rows, _ in batches:
            stream[rows] += linear(heads[rows], weights[o_proj])
            found.add(layer.post_attention_layernorm(stream[rows]))
        weights |= replace(GROUPS[2], found)

        found = enter(GROUPS[3])
        gated = torch.empty(len(stream), weights[down_proj].shape[1])
        for rows, _ in batches:
            gated[rows] = layer.mlp(layer.post_attention_layernorm(stream[rows]))
            found.add(gated[rows] / size(stream[rows] + linear(gated[rows], weights[down_proj])))
        weights |= replace(GROUPS[3], found)

        for rows, _ in batches:
            stream[rows] += linear(gated[rows], weights[down_proj])
        return stream


def size(stream: torch.Tensor) -> torch.Tensor:
    """Root mean square [t, 1] of rows [t, H]."""
    return stream.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=TINY)


def add_deepstack(hidden: torch.Tensor, activations: Activations, index: int) -> torch.Tensor:
    """Adds, after one of the first layers, the vision tower's features to the visual tokens."""
    if index < len(activations.deepstack):
        hidden[activations.visual] += activations.deepstack[index]
    return hidden
