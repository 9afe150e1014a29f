"""The language model as one ONNX graph that serves prefill and decode alike.

Inputs, for B sequences of S new tokens each (right-padded), H hidden size, C cache capacity:
  inputs_embeds    f32 [B, S, H]     token and vision embeddings, looked up by the host
  position_ids     i64 [3, B, S]     temporal, height and width position of every token (mRoPE)
  deepstack        f32 [n, B, S, H]  vision features added after the first n layers; without media zeros
                                     [n, 1, 1, H]
  seqlens_k        i32 [B]           tokens in the cache after this step, minus one
  total_length     i32 []            the longest of these lengths
  query_seqlens    i32 [B]           valid new tokens of each sequence, 0 to S
  logit_rows       i64 [R]           which of the B*S flattened tokens get logits
  past_key.i, past_value.i           f32 or int8 [B, kv heads, C, D], bound to the memory of present_key.i
                                     and present_value.i: the cache is updated in place
Output: logits f32 [R, vocabulary].
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from engines.checkpoint import Checkpoint
from engines.config import TextConfig
from engines.graphs.builder import MICROSOFT, Graph
from engines.graphs.head import head
from engines.int4 import Int4, stacked
from engines.onnx_files import EmbeddingTable

MODEL = "model.language_model"
EMBED_TOKENS = f"{MODEL}.embed_tokens.weight"
LENGTHS = ("seqlens_k", "total_length", "query_seqlens")
INT8_CACHE = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
CacheScales = npt.NDArray[np.float32]


def decoder(
    checkpoint: Checkpoint,
    path: Path,
    embedding: EmbeddingTable,
    *,
    accuracy_level: int,
    cache_scales: CacheScales | None = None,
) -> None:
    """Write the decoder of `checkpoint` to `path`, its weights beside it.

    embedding: the token embeddings, a file beside `path`; a tied head reads it instead of a second copy.
    accuracy_level: how MatMulNBits computes, see Graph. cache_scales: for keys and values in int8, f32
    [layers, 2, kv heads * D], the step of each channel of the keys and of the values.
    """
    with Graph(path, accuracy_level=accuracy_level) as graph:
        _decoder(graph, checkpoint, embedding, cache_scales)


def _decoder(
    graph: Graph, checkpoint: Checkpoint, embedding: EmbeddingTable, cache_scales: CacheScales | None
) -> None:
    config = checkpoint.config.text
    hidden = graph.input("inputs_embeds", np.float32, ["B", "S", config.hidden_size])
    rotary = _rotary(graph, config)
    deepstack = _deepstack(graph, config, len(checkpoint.config.vision.deepstack_visual_indexes))
    for name, shape in zip(LENGTHS, (["B"], [], ["B"]), strict=True):
        graph.input(name, np.int32, shape)
    update = ""  # what the last block adds to the residual stream; the next norm does the addition
    for layer in range(config.num_hidden_layers):
        prefix = f"{MODEL}.layers.{layer}"
        x, hidden = _norm(graph, checkpoint, f"{prefix}.input_layernorm", hidden, update)
        scales = None if cache_scales is None else cache_scales[layer]
        update = _attention(graph, checkpoint, layer, x, rotary, scales)
        x, hidden = _norm(graph, checkpoint, f"{prefix}.post_attention_layernorm", hidden, update)
        update = _mlp(graph, checkpoint, f"{prefix}.mlp", x)
        if layer < len(deepstack):
            update = graph.op("Add", [update, deepstack[layer]], name=f"{prefix}.deepstack")
    x = _last_norm(graph, checkpoint, hidden, update)
    logits = head(graph, checkpoint, x, embedding)
    graph.output("logits", logits, np.float32, ["R", config.vocab_size])


def rotary_frequencies(config: TextConfig) -> npt.NDArray[np.float32]:
    """Angle per position, f32 [3, head_dim / 2]: which of the three positions turns which pair, and how fast.

    Interleaved mRoPE: the pairs run t h w t h w ... while the height and width sections last, then t
    (Qwen3-VL technical report, 2025; recomposition_frequencies in transformers).
    """
    half = config.head_dim // 2
    exponent = np.arange(half, dtype=np.float32) / np.float32(half)
    frequencies = np.float32(1) / np.float32(config.rope_theta) ** exponent
    axis = np.zeros(half, np.int64)
    for dimension in (1, 2):
        axis[dimension : 3 * config.mrope_section[dimension] : 3] = dimension
    return np.where(axis == np.arange(3)[:, None], frequencies, np.float32(0))


def _rotary(graph: Graph, config: TextConfig) -> list[str]:
    """cos and sin f32 [B, S, D / 2], computed from the positions.

    In the graph and not as tables: at 262,144 positions those take 134 MB, and shorter ones would cap the
    context. One term of each product is non-zero, so the angles are a table's to the last bit.
    """
    positions = graph.input("position_ids", np.int64, [3, "B", "S"])
    positions = graph.op("Cast", [positions], name="rotary.positions", to=1)
    positions = graph.op("Transpose", [positions], name="rotary.rows", perm=[1, 2, 0])
    frequencies = graph.vector("rotary.frequencies", rotary_frequencies(config))
    angles = graph.op("MatMul", [positions, frequencies], name="rotary.angles")
    return [graph.op("Cos", [angles], name="rotary.cos"), graph.op("Sin", [angles], name="rotary.sin")]


def _deepstack(graph: Graph, config: TextConfig, taps: int) -> list[str]:
    features = graph.input("deepstack", np.float32, [taps, "B or 1", "S or 1", config.hidden_size])
    return [
        graph.op("Gather", [features, graph.constant(tap)], name=f"deepstack.{tap}") for tap in range(taps)
    ]


def _norm(graph: Graph, checkpoint: Checkpoint, name: str, hidden: str, update: str) -> tuple[str, str]:
    """RMSNorm of hidden + update, and that sum."""
    scale = graph.vector(f"{name}.weight", checkpoint.tensor(f"{name}.weight"))
    epsilon = checkpoint.config.text.rms_norm_eps
    if not update:
        return graph.op("RMSNormalization", [hidden, scale], name=name, epsilon=epsilon), hidden
    outputs = [name, "", "", f"{name}.residual"]
    graph.ops(
        "SkipSimplifiedLayerNormalization",
        [hidden, update, scale],
        outputs,
        domain=MICROSOFT,
        epsilon=epsilon,
    )
    return outputs[0], outputs[3]


def _attention(
    graph: Graph, checkpoint: Checkpoint, layer: int, x: str, rotary: list[str], scales: CacheScales | None
) -> str:
    config, prefix = checkpoint.config.text, f"{MODEL}.layers.{layer}.self_attn"
    heads = {
        "q": config.num_attention_heads,
        "k": config.num_key_value_heads,
        "v": config.num_key_value_heads,
    }
    q, k, v = _linears(graph, checkpoint, prefix, [f"{kind}_proj" for kind in heads], x)
    q, k = (
        _rotated(graph, checkpoint, f"{prefix}.{kind}_norm", value, heads[kind], rotary)
        for kind, value in (("q", q), ("k", k))
    )
    shape: list[int | str] = ["B", config.num_key_value_heads, "C", config.head_dim]
    dtype: npt.DTypeLike = np.float32
    steps, quantized = ["", ""], {}
    if scales is not None:
        dtype, quantized = np.int8, INT8_CACHE
        steps = [graph.vector(f"{prefix}.{kind}_scale", row) for kind, row in zip("kv", scales, strict=True)]
    past = [graph.input(f"past_{kind}.{layer}", dtype, shape) for kind in ("key", "value")]
    present = [f"present_{kind}.{layer}" for kind in ("key", "value")]
    seqlens_k, total_length, query_seqlens = LENGTHS
    tables, norms = [""] * 5, [""] * 2  # rotary tables, positions, attention bias, sinks: none of these
    y, *_ = graph.ops(
        "GroupQueryAttention",
        [q, k, v, *past, seqlens_k, total_length, *tables, *steps, *norms, query_seqlens],
        [f"{prefix}.attention", *present],
        domain=MICROSOFT,
        num_heads=heads["q"],
        kv_num_heads=heads["k"],
        scale=config.head_dim**-0.5,
        **quantized,
    )
    for name in present:
        graph.output(name, name, dtype, shape)
    return _linear(graph, checkpoint, f"{prefix}.o_proj", y)


def _rotated(graph: Graph, checkpoint: Checkpoint, name: str, x: str, heads: int, rotary: list[str]) -> str:
    """Each head of x [B, S, heads * D] normalised, then turned by its token's position."""
    config = checkpoint.config.text
    scale = graph.vector(f"{name}.weight", checkpoint.tensor(f"{name}.weight"))
    split = graph.constant([0, 0, heads, config.head_dim])
    joined = graph.constant([0, 0, -1])
    x = graph.op("Reshape", [x, split], name=f"{name}.heads")
    x = graph.op("RMSNormalization", [x, scale], name=name, epsilon=config.rms_norm_eps)
    x = graph.op("Reshape", [x, joined], name=f"{name}.joined")
    return graph.op("RotaryEmbedding", [x, *rotary], name=f"{name}.rotated", num_heads=heads)


def _mlp(graph: Graph, checkpoint: Checkpoint, prefix: str, x: str) -> str:
    gate, up = _linears(graph, checkpoint, prefix, ["gate_proj", "up_proj"], x)
    silu = graph.op(
        "QuickGelu", [gate], name=f"{prefix}.silu", domain=MICROSOFT, alpha=1.0
    )  # x * sigmoid(1 * x)
    product = graph.op("Mul", [silu, up], name=f"{prefix}.product")
    return _linear(graph, checkpoint, f"{prefix}.down_proj", product)


def _linears(graph: Graph, checkpoint: Checkpoint, prefix: str, names: list[str], x: str) -> list[str]:
    """Several layers of one input; in 4 bits as one product, which a single token finishes a tenth sooner."""
    weights = [checkpoint.weight(f"{prefix}.{name}") for name in names]
    int4 = [weight for weight in weights if isinstance(weight, Int4)]
    if len(int4) < len(weights) or len({weight.group_size for weight in int4}) > 1:
        return [graph.linear(f"{prefix}.{name}", x, w) for name, w in zip(names, weights, strict=True)]
    joint = graph.linear(f"{prefix}.{'+'.join(names)}", x, stacked(int4))
    sizes = graph.constant([len(weight.codes) for weight in int4])
    return graph.ops("Split", [joint, sizes], [f"{prefix}.{name}" for name in names], axis=-1)


def _linear(graph: Graph, checkpoint: Checkpoint, name: str, x: str) -> str:
    return graph.linear(name, x, checkpoint.weight(name))


def _last_norm(graph: Graph, checkpoint: Checkpoint, hidden: str, update: str) -> str:
    """The chosen rows only: one row of a large vocabulary costs as much as several layers."""
    rows = graph.input("logit_rows", np.int64, ["R"])
    flat = graph.constant([-1, checkpoint.config.text.hidden_size])
    chosen = []
    for name, value in (("hidden", hidden), ("update", update)):
        value = graph.op("Reshape", [value, flat], name=f"head.{name}")
        chosen.append(graph.op("Gather", [value, rows], name=f"head.{name}.rows"))
    return _norm(graph, checkpoint, f"{MODEL}.norm", *chosen)[0]
