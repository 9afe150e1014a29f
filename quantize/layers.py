"""One decoder layer at a time: filled from the checkpoint, measured on the calibration set, run again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextDecoderLayer, Qwen3VLTextRotaryEmbedding

from engines.checkpoint import Checkpoint
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
TINY = torch.finfo(torch.float32).tiny


@dataclass
class Statistics:
    """Second moment X^T X / T [K, K] and mean |x| [K] of the T inputs a group of linears reads.

    What o_proj and down_proj compute is added to the residual stream, which the next norm divides by its
    size. So their inputs are divided by it too: otherwise a few tokens with a huge stream (often the first,
    an attention sink) would decide the codes, though errors in them are the ones that matter least.

    """

    hessian: torch.Tensor
    magnitude: torch.Tensor

    @classmethod
    def empty(cls, width: int) -> Statistics:
        return cls(torch.zeros(width, width), torch.zeros(width))

    def add(self, x: torch.Tensor, tokens: int) -> None:
        """Counts some of the `tokens` inputs, x [t, K]."""
        self.hessian.addmm_(x.T, x, alpha=1 / tokens)
        self.magnitude.add_(x.abs().sum(0), alpha=1 / tokens)


def layer_prefix(index: int) -> str:
    """What the names of a decoder layer's tensors begin with."""
    return f"model.language_model.layers.{index}."


def load_layer(checkpoint: Checkpoint, index: int) -> dict[str, torch.Tensor]:
    """A decoder layer's tensors in the checkpoint's type, by their names within the layer."""
    prefix = layer_prefix(index)
    names = [name for name in checkpoint.names() if name.startswith(prefix)]
    return {name.removeprefix(prefix): to_torch(checkpoint.tensor(name)) for name in names}


class Decoder:
    """transformers' decoder layer in float32, filled with one layer's tensors at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = Qwen3VLConfig.from_pretrained(checkpoint.path).text_config
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.layer = Qwen3VLTextDecoderLayer(config, layer_idx=0).eval()
        self.rotary = Qwen3VLTextRotaryEmbedding(config)

    def run(self, tensors: dict[str, torch.Tensor], activations: Activations) -> torch.Tensor:
        """Hidden states [T, H] after the layer."""
        output = torch.empty_like(activations.hidden)
        for rows, states in self._forward(tensors, activations):
            output[rows] = states
        return output

    def measure(self, tensors: dict[str, torch.Tensor], activations: Activations) -> list[Statistics]:
        """The statistics of each of GROUPS over all tokens."""
        inputs: dict[str, torch.Tensor] = {}
        readers = [group.linears[0] for group in GROUPS]
        hooks = [
            self.layer.get_submodule(name).register_forward_pre_hook(partial(_keep, inputs, name))
            for name in (*readers, "post_attention_layernorm")
        ]
        statistics = [Statistics.empty(self.layer.get_submodule(name).in_features) for name in readers]
        for _, output in self._forward(tensors, activations):
            streams = {"self_attn.o_proj": inputs["post_attention_layernorm"], "mlp.down_proj": output}
            for name, found in zip(readers, statistics, strict=True):
                x = inputs[name]
                if name in streams:
                    x = x / streams[name].pow(2).mean(-1, keepdim=True).sqrt().clamp(min=TINY)
                found.add(x, len(activations.hidden))
        for hook in hooks:
            hook.remove()
        return statistics

    @torch.no_grad()
    def _forward(
        self, tensors: dict[str, torch.Tensor], activations: Activations
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows and their states after the layer; sequences of one length together, unpadded, causally."""
        self.layer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        for rows, sequences in activations.batches():
            hidden = activations.hidden[rows].reshape(sequences, -1, activations.hidden.shape[-1])
            positions = activations.positions[:, rows].reshape(3, sequences, -1)
            output = self.layer(hidden, self.rotary(hidden, positions), attention_mask=None)
            yield rows, output.flatten(0, 1)


def _keep(
    inputs: dict[str, torch.Tensor], name: str, module: torch.nn.Module, given: tuple[torch.Tensor]
) -> None:
    inputs[name] = given[0].flatten(0, -2)


def add_deepstack(hidden: torch.Tensor, activations: Activations, index: int) -> torch.Tensor:
    """Adds, after one of the first layers, the vision tower's features to the visual tokens."""
    if index < len(activations.deepstack):
        hidden[activations.visual] += activations.deepstack[index]
    return hidden
