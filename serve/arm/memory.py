"""What an artifact will take before it is loaded, counted from its files."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engines.config import ModelConfig
from engines.engine_files import ENGINE_FACTS, EngineFacts
from engines.errors import UserError
from engines.onnx_files import DECODER, EMBEDDING, HEAD, HEAD_ROWS, PACKED, VISION
from engines.units import human_size
from serve.arm.scheduler import CHUNK

PROCESS = 140_000_000  # interpreter, libraries and web server
TRANSFORMERS = 450_000_000  # it and torch
USUAL = 8192  # tokens of context where nobody asks for others and memory allows
SHORTEST = 256  # that an arm starts with
IMAGE_PATCHES = 28 * 28  # of one 448 x 448 picture; a larger one takes more while it is looked at


@dataclass(frozen=True)
class Forecast:
    """Bytes at the fullest: every slot at its whole context, while a prompt with a picture is computed."""

    weights: int
    working: int
    cache_per_token: int
    slots: int
    context: int

    @property
    def cache(self) -> int:
        return self.cache_per_token * self.slots * self.context

    @property
    def total(self) -> int:
        return PROCESS + self.weights + self.working + self.cache

    def longest_context(self, memory: int) -> int:
        """Tokens for each slot that fit in `memory`; 0 when not even the weights do."""
        return max(0, (memory - self.total + self.cache) // (self.cache_per_token * self.slots))

    def __str__(self) -> str:
        slots = f"{self.slots} slots of {self.context} tokens"
        parts = f"{human_size(self.weights)} weights, {human_size(self.cache)} keys and values ({slots}), "
        parts += f"{human_size(PROCESS + self.working)} to work"
        return f"{human_size(self.total)}: {parts}"


def forecast(directory: Path, config: ModelConfig, *, slots: int, context: int) -> Forecast:
    """Of a variant, as if on a CPU; UserError when a file is missing."""
    text, vision, tied = config.text, config.vision, config.tie_word_embeddings
    values = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim
    working = 4 * min(context, CHUNK) * (3 * text.intermediate_size + 6 * text.hidden_size)
    working += 4 * IMAGE_PATCHES * (2 * vision.intermediate_size + 6 * vision.hidden_size + IMAGE_PATCHES)
    if not (directory / DECODER).exists():
        weights = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        weights -= 0 if tied else 2 * text.vocab_size * text.hidden_size  # few embeddings are read
        return Forecast(weights, TRANSFORMERS + working, 4 * values, slots, context)
    try:
        graph = (directory / DECODER).read_bytes()
        bytes_of = {name: (directory / name).stat().st_size for name in (DECODER, VISION, EMBEDDING)}
        for name in (DECODER, VISION):  # with its .data, or .engine
            bytes_of[name] = sum(path.stat().st_size for path in directory.glob(f"{Path(name).stem}.*"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: export the checkpoint again") from None
    weights = bytes_of[DECODER] + bytes_of[VISION]
    if b"MatMulNBits" in graph:  # few of the embedding's rows are read, and of a 16-bit head's of its own
        weights -= 0 if tied or HEAD.encode() not in graph else bytes_of[EMBEDDING]
        weights += int(PACKED * weights)
    else:  # a tied head reads all of them; weights are widened to fp32 where they are used, it in slices
        widened = min(text.vocab_size, HEAD_ROWS) + text.intermediate_size
        weights += (bytes_of[EMBEDDING] if tied else 0) + 4 * widened * text.hidden_size
    per_token = values * (1 if b"kv_cache_bit_width" in graph else 4)
    return Forecast(weights, working, per_token, slots, context)


def choose_context(
    directory: Path, config: ModelConfig, *, slots: int, context: int | None, memory: int
) -> Forecast:
    """The forecast at `context`, or at the longest that fits up to USUAL; UserError when it does not fit."""
    limit = config.text.max_position_embeddings
    if (directory / ENGINE_FACTS).exists():
        limit = EngineFacts.read(directory).context
    if context is not None and not SHORTEST <= context <= limit:
        raise UserError(f"a context of {context} tokens: expected {SHORTEST} to {limit}, which the model has")
    wanted = forecast(directory, config, slots=slots, context=min(context or USUAL, limit))
    fits = min(wanted.longest_context(memory), limit)
    if context is None and SHORTEST <= fits < wanted.context:
        return forecast(directory, config, slots=slots, context=fits)
    if wanted.total > memory:
        advice = f"--context {fits} fits" if fits >= SHORTEST else "use fewer --slots or a smaller variant"
        if smaller := _beside(directory, slots=slots, context=wanted.context, memory=memory):
            advice = f"{advice}; {smaller}, beside it, fits as it is"
        raise UserError(f"{directory} would take {wanted}; {human_size(memory)} are available: {advice}")
    return wanted


def _beside(directory: Path, *, slots: int, context: int, memory: int) -> str | None:
    """Name of the largest artifact in the same folder that fits."""
    totals: dict[str, int] = {}
    for folder in {path.parent for path in directory.resolve().parent.glob(f"*/{DECODER}")}:
        with suppress(UserError):  # whatever else lies there
            found = forecast(folder, ModelConfig.load(folder), slots=slots, context=context)
            totals[folder.name] = found.total
    fitting = {name: total for name, total in totals.items() if total <= memory}
    return max(fitting, key=fitting.__getitem__, default=None)
