"""What a build will need, from the model's shape: bytes, memory at a context and batch, seconds.

Bytes are counted. Memory is counted plus each runtime's own footprint. Time is counted operations and bytes
over this machine's measured rates, of which each runtime is taken to reach a share; the shares of whole runs
at full size are in docs/log.md. ``plan`` prints them; the gate never uses them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from bench.resources import DECODED, IMAGE_SIDE, REQUESTS, SHORT, WARMUP
from build.rates import Machine
from build.recipe import BASELINES, KINDS, Recipe
from build.stages import CACHE_SAMPLES
from engines.config import ModelConfig
from engines.onnx_files import HEAD_ROWS, PACKED
from quantize.cost import operations

CHUNK = 512  # tokens that pass a decoder at a time, in transformers of each sequence
WRITE_BYTES_PER_S = 250e6  # what a disk is trusted with
COMPILED_PER_S = {True: 40e6, False: 100e6}  # bytes of TensorRT's plans, in 4 bits and in 16
QUANTIZED = 0.72  # of the rate of matrix products, what quantising reaches beside the counted ones
CONVERTED_PER_S = 200e6  # weights an export turns into another type


@dataclass(frozen=True)
class Runtime:
    """What a way of running a model adds to what is counted."""

    start_bytes: int  # of a process before any weight is loaded
    start_seconds: float  # until the first request
    prefill: float  # share of the measured product rate that a long prompt reaches
    decode: float  # share of the measured read bandwidth that a step of one sequence reaches
    call_seconds: float  # of each layer in each step, however small


TRANSFORMERS = Runtime(425_000_000, 6.0, prefill=0.7, decode=0.12, call_seconds=60e-6)
TRANSFORMERS_INT4 = Runtime(425_000_000, 16.0, prefill=0.6, decode=0.05, call_seconds=60e-6)
ONNX_DENSE = Runtime(95_000_000, 4.0, prefill=0.7, decode=0.15, call_seconds=10e-6)
TENSORRT = Runtime(500_000_000, 5.0, prefill=1.0, decode=1.0, call_seconds=10e-6)  # never run: a guess
ONNX_INT4 = Runtime(95_000_000, 6.0, prefill=0.85, decode=0.45, call_seconds=10e-6)


@dataclass(frozen=True)
class Load:
    """A set of prompts: tokens and vision patches of each, on average, and how many there are.

    steps: tokens of the longest right answer of a batch, on average; None is as many as the recipe allows.
    """

    tokens: float
    patches: float
    prompts: int = 1
    steps: float | None = None


@dataclass(frozen=True)
class Size:
    """Parameter counts of the parts that are stored or run differently."""

    decoder_linears: int
    embedding: int
    head: int
    vision_blocks: int
    mergers: int
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
            vision_blocks=vision.depth * block,
            mergers=mergers,
            other=norms + tables,
        )

    @property
    def vision(self) -> int:
        return self.vision_blocks + self.mergers

    @property
    def total(self) -> int:
        return self.decoder_linears + self.embedding + self.head + self.vision + self.other


def runtime(variant: str) -> Runtime:
    kind = KINDS[variant]
    if kind.target:
        return TENSORRT
    if kind.onnx:
        return ONNX_INT4 if kind.method else ONNX_DENSE
    return TRANSFORMERS_INT4 if kind.method else TRANSFORMERS


def disk_bytes(config: ModelConfig, variant: str, group_size: int) -> int:
    """Bytes of a variant's folder: 16-bit weights, or 4-bit codes with a scale per group."""
    size, kind = Size.of(config), KINDS[variant]
    if kind.target:
        return _plan_bytes(size, bool(kind.method), group_size) + 2 * size.embedding
    if not kind.method:
        return 2 * size.total
    linears = size.decoder_linears * (0.5 + (4 if kind.onnx else 2) / group_size)
    rest = 2 * (size.embedding + size.head + size.other)
    if kind.onnx:  # a 4-bit head before the 16-bit one, an 8-bit vision tower
        return int(linears + rest + size.embedding * (0.5 + 4 / 128) + size.vision)
    return int(linears + rest + 2 * size.vision)


def _plan_bytes(size: Size, int4: bool, group_size: int) -> int:
    """In 4 bits there are two decoders (engines.tensorrt.engines). A tied head is the table of embeddings."""
    if int4:
        decoders = 2 * (size.decoder_linears * (0.5 + 2 / group_size) + 2 * size.head)
    else:
        decoders = 2 * size.decoder_linears + 2 * size.head
    return int(decoders + 2 * (size.vision + size.other))


def kv_bytes_per_token(config: ModelConfig, variant: str) -> int:
    """Keys and values of every layer: fp32 on a CPU, unless the variant keeps them in int8; fp16 on a GPU."""
    text = config.text
    values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    if KINDS[variant].target:
        return 2 * values
    return values * (1 if KINDS[variant].int8_cache else 4)


def memory_bytes(config: ModelConfig, variant: str, group_size: int, context: int, batch: int) -> int:
    """Peak memory of bench.resources: `batch` questions about an image, of `context` tokens each.

    A process's on a CPU, where mapped weights count as far as they are read; a GPU's for what runs there.
    """
    size, kind, text, vision = Size.of(config), KINDS[variant], config.text, config.vision
    weights: float = disk_bytes(config, variant, group_size)
    if size.head:  # of a table of embeddings that is not the head too, few rows are read
        weights -= 2 * size.embedding
    if kind.target:
        pass_tokens = min(context, CHUNK) * batch
        working = 2 * pass_tokens * (2 * text.intermediate_size + 6 * text.hidden_size)
        cache = kv_bytes_per_token(config, variant) * context * batch
        return int(TENSORRT.start_bytes + weights + working + cache)
    if kind.onnx and kind.method:  # of the 16-bit rows few are read; the packed ones lie beside their file
        weights += PACKED * (weights - 2 * size.embedding) - 2 * size.embedding
    elif kind.onnx:  # rows of the head and one matrix are widened at a time
        weights += 4 * (min(text.vocab_size, HEAD_ROWS) + text.intermediate_size) * text.hidden_size
    elif kind.method:  # codes lie unpacked, a byte each, beside their file
        weights += size.decoder_linears * (1 + 4 / group_size)
    tokens = min(context * batch, CHUNK) if kind.onnx else min(context, CHUNK) * batch
    working = 4 * tokens * (3 * text.intermediate_size + 6 * text.hidden_size)
    patches = image_patches(config, context)
    working += 4 * patches * (2 * vision.intermediate_size + 6 * vision.hidden_size + patches)
    cache = kv_bytes_per_token(config, variant) * context * batch
    return int(runtime(variant).start_bytes + weights + working + cache)


def image_patches(config: ModelConfig, context: int) -> int:
    """Patches of the image that bench.resources asks about."""
    side = min(IMAGE_SIDE, int((context / 2) ** 0.5))
    return (side * config.vision.spatial_merge_size) ** 2


def longest_context(config: ModelConfig, variant: str, group_size: int, batch: int, memory: int) -> int:
    """Tokens for which memory_bytes is within `memory`, up to the model's own limit; 0 when nothing fits."""
    limit = config.text.max_position_embeddings
    return longest(limit, lambda n: memory_bytes(config, variant, group_size, n, batch) <= memory)


def longest(limit: int, fits: Callable[[int], bool]) -> int:
    """The most tokens up to `limit` that fit, where all fewer do; 0 when none does."""
    return bisect_left(range(1, limit + 1), True, key=lambda tokens: not fits(tokens))


def answer_seconds(
    config: ModelConfig, variant: str, machine: Machine, load: Load, prompts: float, steps: float, batch: int
) -> float:
    """Seconds for `prompts` prompts in batches of `batch`, each batch followed by `steps` decoding steps."""
    size, text, kind, way = Size.of(config), config.text, KINDS[variant], runtime(variant)
    attention = 2 * load.tokens**2 * text.num_hidden_layers * text.num_attention_heads * text.head_dim
    per_prompt = 2 * size.decoder_linears * load.tokens + attention + 2 * size.embedding
    vision, merge = config.vision, config.vision.spatial_merge_size**2
    encoding = 2 * load.patches * (size.vision_blocks + size.mergers / merge)
    encoding += 4 * load.patches**2 * vision.depth * vision.hidden_size
    rate = machine.flops * way.prefill
    weights = size.decoder_linears * (0.53 if kind.method else 2) + size.embedding * (
        0.53 if kind.method and kind.onnx else 2
    )
    once = weights / (machine.read * way.decode) + text.num_hidden_layers * way.call_seconds
    step = once + 2 * (size.decoder_linears + size.embedding) * (batch - 1) / rate
    passes = ceil(load.tokens / CHUNK)  # each widens every weight once, however few its tokens
    return float(
        prompts * ((per_prompt + encoding) / rate + passes * once) + ceil(prompts / batch) * steps * step
    )


def seconds(
    stage: str, config: ModelConfig, variant: str, recipe: Recipe, machine: Machine, asked: Load, seen: Load
) -> float:
    """Time of one stage here. asked: the evaluation items; seen: the calibration set."""
    variant = "fp16" if variant in BASELINES.values() else variant
    start = runtime(variant).start_seconds if variant in KINDS else 1.0
    written = disk_bytes(config, variant, recipe.quantize.group_size) if variant in KINDS else 0
    moving = written / WRITE_BYTES_PER_S + written / machine.hashed
    evaluate, gate = recipe.evaluate, recipe.gate
    match stage:
        case "checkpoint":
            return moving + written / machine.hashed  # the source is hashed too
        case "export":
            if variant not in KINDS:  # the graphs that engines are compiled from
                return 1 + 2 * Size.of(config).total * (1 / WRITE_BYTES_PER_S + 1 / machine.hashed)
            scaled = min(seen.prompts, CACHE_SAMPLES) if KINDS[variant].int8_cache else 0
            moving += Size.of(config).total / CONVERTED_PER_S
            return 1 + moving + answer_seconds(config, variant, machine, seen, scaled, 0, 1)
        case "quantize":
            return quantize_seconds(config, variant, recipe, machine, seen) + moving
        case "tensorrt":
            return 3 + written / COMPILED_PER_S[bool(KINDS[variant].method)]
        case "evaluate":  # of one shard
            steps = evaluate.max_tokens if asked.steps is None else min(asked.steps, evaluate.max_tokens)
            answers = answer_seconds(
                config, variant, machine, asked, evaluate.items / evaluate.shards, steps, evaluate.batch_size
            )
            some = min(evaluate.fidelity_items, evaluate.items) / evaluate.shards
            rows = 2 * some * steps * Size.of(config).embedding / machine.flops
            return start + answers + answer_seconds(config, variant, machine, asked, some, 0, 1) + rows
        case "memory":
            long, short = (
                Load(context, image_patches(config, context)) for context in (gate.context, SHORT - DECODED)
            )
            full = answer_seconds(config, variant, machine, long, gate.batch, DECODED, gate.batch)
            many = WARMUP + REQUESTS
            return start + full + answer_seconds(config, variant, machine, short, many, DECODED, 1)
        case _:
            return start


def quantize_seconds(
    config: ModelConfig, variant: str, recipe: Recipe, machine: Machine, seen: Load
) -> float:
    """Encoding the calibration set in fp32, then the operations counted by quantize.cost."""
    vision = answer_seconds(config, "fp16", machine, Load(0, seen.patches), seen.prompts, 0, 1)
    method, group = str(KINDS[variant].method), recipe.quantize.group_size
    counted = operations(config, method, round(seen.tokens * seen.prompts), group)
    return 8 + vision + counted / (QUANTIZED * machine.flops)


def latency_seconds(
    config: ModelConfig, recipe: Recipe, machine: Machine, asked: Load, arms: Sequence[str]
) -> float:
    """All arms answer all requests in turn, then at every load; this is never cached. The baseline is among
    them twice.
    """
    settings = recipe.latency
    prompts = {size: settings.requests // size * size * settings.repeats for size in settings.batches}
    prompts[1] += settings.warmup + settings.requests * settings.repeats * len(settings.rates)
    return sum(
        runtime(arm).start_seconds
        + sum(
            answer_seconds(config, arm, machine, asked, count, settings.output_tokens, size)
            for size, count in prompts.items()
        )
        for arm in arms
    )
