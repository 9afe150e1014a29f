"""What a build will need, from the model's shape alone: bytes, memory at a context and batch, seconds.

Bytes are counted, memory is counted plus the runtime's own footprint, time is operations over this
machine's measured matrix-product rate. ``plan`` prints them; the gate never uses them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from build.recipe import Recipe
from build.stages import kv_cache_bytes
from engines.config import ModelConfig

# Footprint of a process before any weight is loaded.
RUNTIME_BYTES = {"transformers": 425_000_000, "onnxruntime": 95_000_000}
START_SECONDS = {
    "checkpoint": 0.1,
    "items": 2.0,
    "quantize": 8.0,
    "export": 1.0,
    "evaluate": 6.0,
    "memory": 6.0,
}
DISK_BYTES_PER_S = 300e6
# A small model spends its time in calls rather than in products: this much for a token of one sequence.
CALL_SECONDS_PER_LAYER = 60e-6


@dataclass(frozen=True)
class Size:
    """Parameter counts of the parts that are stored or run differently."""

    decoder_linears: int
    embedding: int
    head: int
    vision: int
    other: int

    @classmethod
    def of(cls, config: ModelConfig) -> Size:
        text, vision = config.text, config.vision
        heads = (text.num_attention_heads * 2 + text.num_key_value_heads * 2) * text.head_dim
        linears = text.hidden_size * (heads + 3 * text.intermediate_size)
        embedding = text.vocab_size * text.hidden_size
        block = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
        merged = vision.hidden_size * vision.spatial_merge_size**2
        mergers = (1 + len(vision.deepstack_visual_indexes)) * merged * (merged + vision.out_hidden_size)
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        tables = (patch + vision.num_position_embeddings) * vision.hidden_size
        norms = text.num_hidden_layers * (2 * text.hidden_size + 2 * text.head_dim)
        return cls(
            decoder_linears=text.num_hidden_layers * linears,
            embedding=embedding,
            head=0 if config.tie_word_embeddings else embedding,
            vision=vision.depth * block + mergers + tables,
            other=norms,
        )

    @property
    def total(self) -> int:
        return self.decoder_linears + self.embedding + self.head + self.vision + self.other


def disk_bytes(config: ModelConfig, variant: str, group_size: int) -> int:
    """Bytes of a variant's folder: 16-bit weights, or 4-bit codes with a scale per group."""
    size = Size.of(config)
    onnx = "onnx" in variant
    scale_bytes = (4 if onnx else 2) / group_size
    linears = size.decoder_linears * ((0.5 + scale_bytes) if "int4" in variant else 2)
    # The graph needs the head as a matrix of its own beside the embedding rows read on the host.
    head = size.embedding if onnx else size.head
    return int(linears + 2 * (size.embedding + head + size.vision + size.other))


def memory_bytes(config: ModelConfig, variant: str, recipe: Recipe) -> int:
    """Peak memory while serving the recipe's context and batch on a CPU."""
    size, gate = Size.of(config), recipe.gate
    onnx = "onnx" in variant
    cache = kv_cache_bytes(config, gate.context, gate.batch)
    if onnx:
        linears = size.decoder_linears * (0.5 + 4 / recipe.quantize.group_size if "int4" in variant else 4)
        weights = linears + 2 * size.embedding + 4 * (size.embedding + size.vision + size.other)
    else:
        weights, cache = 2 * size.total, cache // 2
    return int(RUNTIME_BYTES["onnxruntime" if onnx else "transformers"] + weights + cache)


def seconds(stage: str, config: ModelConfig, variant: str, recipe: Recipe, flops: float) -> float:
    """Rough time of one stage on this machine at ``flops`` operations a second."""
    size, start = Size.of(config), START_SECONDS[stage]
    written = (
        disk_bytes(config, variant, recipe.quantize.group_size)
        if stage in ("checkpoint", "export", "quantize")
        else 0
    )
    work = 0.0
    if stage == "quantize":
        text, tokens = config.text, 128 * 64
        widths = {text.hidden_size: 2, text.num_attention_heads * text.head_dim: 1, text.intermediate_size: 1}
        hessians = sum(count * (2 * tokens * width**2 + width**3) for width, count in widths.items())
        work = 4 * size.decoder_linears * tokens + text.num_hidden_layers * hessians
    if stage == "evaluate":
        prompts = recipe.evaluate.items * 64 * 2 * size.total
        steps = recipe.evaluate.items / recipe.evaluate.batch_size * 6
        work = prompts + steps * CALL_SECONDS_PER_LAYER * config.text.num_hidden_layers * flops
    if stage == "memory":
        work = 2 * size.total * recipe.gate.context * recipe.gate.batch
    return float(start + written / DISK_BYTES_PER_S + work / flops)


def measure_flops() -> float:
    """fp32 operations a second of one large matrix product here."""
    a = np.ones((1024, 1024), np.float32)
    a @ a
    began = time.perf_counter()
    a @ a
    return 2 * 1024**3 / (time.perf_counter() - began)
