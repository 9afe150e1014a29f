"""The language model as one ONNX graph that serves prefill and decode alike.

Inputs of both dialects, for B sequences of S new tokens each (right-padded), H hidden size; floats are f32 in
the fused dialect, f16 in the standard one:
  inputs_embeds    [B, S, H]         token and vision embeddings, looked up by the host
  deepstack        [n, B, S, H]      vision features added after the first n layers; without media zeros,
                                     when fused [n, 1, 1, H] will do
  logit_rows       i64 [R]           which of the B*S flattened tokens get logits
Where the tokens stand and how the cache is bound is each dialect's own. Output: logits f32 [R, vocabulary].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engines.checkpoint import Checkpoint
from engines.graphs import Dialect
from engines.graphs.head import head
from engines.graphs.standard import Standard
from engines.int4 import Int4, stacked
from engines.int8 import Int8
from engines.onnx_files import EmbeddingTable

MODEL = "model.language_model"
EMBED_TOKENS = f"{MODEL}.embed_tokens.weight"


def decoder(graph: Dialect, checkpoint: Checkpoint, embedding: EmbeddingTable) -> None:
    """Build the decoder of `checkpoint` in `graph`.

    embedding: the token embeddings, a file beside the graph's; a tied head reads it instead of a second copy.
    """
    config = checkpoint.config.text
    embeds = graph.input("inputs_embeds", graph.activations, ["B", "S", config.hidden_size])
    hidden = graph.residual(embeds)
    rotary = graph.token_places(config)
    deepstack = _deepstack(graph, checkpoint)
    update = ""  # what the last block adds to the residual stream; the next norm does the addition
    for layer in range(config.num_hidden_layers):
        prefix = f"{MODEL}.layers.{layer}"
        x, hidden = _norm(graph, checkpoint, f"{prefix}.input_layernorm", hidden, update)
        update = _attention(graph, checkpoint, layer, x, rotary)
        x, hidden = _norm(graph, checkpoint, f"{prefix}.post_attention_layernorm", hidden, update)
        update = _mlp(graph, checkpoint, f"{prefix}.mlp", x)
        if layer < len(deepstack):
            update = graph.op("Add", [update, deepstack[layer]], name=f"{prefix}.deepstack")
    x = _last_norm(graph, checkpoint, hidden, update)
    logits = graph.cast(head(graph, checkpoint, x, embedding), np.float32)
    graph.output("logits", logits, np.float32, ["R", config.vocab_size])


def _deepstack(graph: Dialect, checkpoint: Checkpoint) -> list[str]:
    taps = len(checkpoint.config.vision.deepstack_visual_indexes)
    free = ["B", "S"] if isinstance(graph, Standard) else ["B or 1", "S or 1"]
    hidden = checkpoint.config.text.hidden_size
    features = graph.input("deepstack", graph.activations, [taps, *free, hidden])
    return [
        graph.op("Gather", [features, graph.constant(tap)], name=f"deepstack.{tap}") for tap in range(taps)
    ]


def _norm(graph: Dialect, checkpoint: Checkpoint, name: str, hidden: str, update: str) -> tuple[str, str]:
    """RMSNorm of hidden + update, and that sum."""
    scale, epsilon = checkpoint.tensor(f"{name}.weight"), checkpoint.config.text.rms_norm_eps
    return graph.add_norm(name, hidden, update, scale, epsilon)


def _attention(graph: Dialect, checkpoint: Checkpoint, layer: int, x: str, rotary: list[str]) -> str:
    config, prefix = checkpoint.config.text, f"{MODEL}.layers.{layer}.self_attn"
    q, k, v = _linears(graph, checkpoint, prefix, [f"{kind}_proj" for kind in "qkv"], x)
    q = _head_norm(graph, checkpoint, f"{prefix}.q_norm", q, config.num_attention_heads)
    k = _head_norm(graph, checkpoint, f"{prefix}.k_norm", k, config.num_key_value_heads)
    y = graph.cached_attention(prefix, layer, q, k, v, rotary, config)
    return _linear(graph, checkpoint, f"{prefix}.o_proj", y)


def _head_norm(graph: Dialect, checkpoint: Checkpoint, name: str, x: str, heads: int) -> str:
    """RMSNorm of every head of x [B, S, heads * D]: [B, S, heads, D]."""
    config = checkpoint.config.text
    split = graph.constant([0, 0, heads, config.head_dim])
    scale = graph.vector(f"{name}.weight", checkpoint.tensor(f"{name}.weight"))
    x = graph.op("Reshape", [x, split], name=f"{name}.heads")
    return graph.op("RMSNormalization", [x, scale], name=name, epsilon=config.rms_norm_eps)


def _mlp(graph: Dialect, checkpoint: Checkpoint, prefix: str, x: str) -> str:
    gate, up = _linears(graph, checkpoint, prefix, ["gate_proj", "up_proj"], x)
    silu = graph.silu(f"{prefix}.silu", gate)
    product = graph.op("Mul", [silu, up], name=f"{prefix}.product")
    return _linear(graph, checkpoint, f"{prefix}.down_proj", product)


def _linears(graph: Dialect, checkpoint: Checkpoint, prefix: str, names: list[str], x: str) -> list[str]:
    """Several layers of one input; in few bits as one product, which a CPU finishes a tenth sooner.

    Not for TensorRT: it writes such a product out in memory before it splits it.
    """
    weights = [checkpoint.weight(f"{prefix}.{name}") for name in names]
    rounded: list[Any] = [weight for weight in weights if isinstance(weight, Int4 | Int8)]
    if (
        isinstance(graph, Standard)
        or len(rounded) < len(weights)
        or len({(type(weight), weight.group_size) for weight in rounded}) > 1
    ):
        return [graph.linear(f"{prefix}.{name}", x, w) for name, w in zip(names, weights, strict=True)]
    joint = graph.linear(f"{prefix}.{'+'.join(names)}", x, stacked(rounded))
    sizes = graph.constant([len(weight.codes) for weight in rounded])
    return graph.ops("Split", [joint, sizes], [f"{prefix}.{name}" for name in names], axis=-1)


def _linear(graph: Dialect, checkpoint: Checkpoint, name: str, x: str) -> str:
    return graph.linear(name, x, checkpoint.weight(name))


def _last_norm(graph: Dialect, checkpoint: Checkpoint, hidden: str, update: str) -> str:
    """The chosen rows only: one row of a large vocabulary costs as much as several layers."""
    rows = graph.input("logit_rows", np.int64, ["R"])
    flat = graph.constant([-1, checkpoint.config.text.hidden_size])
    chosen = []
    for name, value in (("hidden", hidden), ("update", update)):
        value = graph.op("Reshape", [value, flat], name=f"head.{name}")
        chosen.append(graph.op("Gather", [value, rows], name=f"head.{name}.rows"))
    return _norm(graph, checkpoint, f"{MODEL}.norm", *chosen)[0]
