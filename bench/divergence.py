"""Where a variant first leaves the baseline by more than its rounding explains.

Pixels, prompt and positions are compared first, then every place of the model, each working on what the
baseline passed on (bench.traces), so that errors do not add up. What rounding explains is found by rounding
the baseline's own weights to the candidate's formats, plainly: a method that looks at data does better,
damage does worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bench.probes import probes
from bench.suites.catalogue import load_suite
from bench.tasks import Item
from bench.traces.places import LOGITS, ROTARY, Place, Trace, decoder_places, streams, vision_places
from engines.checkpoint import Checkpoint
from engines.config import ModelConfig
from engines.errors import UserError
from engines.onnx_files import DECODER
from engines.processor import Inputs, Processor

if TYPE_CHECKING:
    from bench.traces.rounding import Formats

Prepare = Callable[[Sequence[dict[str, Any]]], Inputs]
Progress = Callable[[int, int], None]

SLACK = 1.25  # of what plain rounding does
GAIN = 0.3  # of the same: rounding errors do not add up along the signal, those of a wrong scale do
TOLERANCE = {np.float32: 1e-3, np.float16: 1e-2}  # where nothing is rounded but by the arithmetic
LONGEST = 512  # tokens of a prompt; transformers' decoder takes longer ones in pieces
TINY = 1e-30
WORST = Place("logits", "worst token")


@dataclass(frozen=True)
class Row:
    """A place, and how far the candidate is from the baseline there, as a share of the baseline.

    expected: the same with the baseline's weights rounded to nearest in the candidate's formats. gain: the
    candidate's projection on the baseline, 1 when it is neither stronger nor weaker. Either beyond its limit
    is more than rounding.
    """

    place: str
    part: str
    distance: float
    expected: float
    limit: float
    gain: float = 1.0
    gain_limit: float = 0.0

    @property
    def diverges(self) -> bool:
        """What is not a number is beyond every limit."""
        return not (self.distance <= self.limit and abs(self.gain - 1) <= self.gain_limit)


@dataclass(frozen=True)
class Divergence:
    """place: the first beyond its limit, in plain words and numbered from 0 as tensors are, or None; detail:
    what was found there; rows: all places in order."""

    place: str | None
    detail: str
    rows: tuple[Row, ...]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        places = [asdict(row) | {"diverges": row.diverges} for row in self.rows]
        return {"place": self.place, "detail": self.detail, "places": places}


def first_divergence(
    baseline: Path,
    candidate: Path,
    *,
    items: Sequence[Item] = (),
    processor: Prepare | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Divergence:
    """Compares a checkpoint or ONNX artifact with the 16-bit checkpoint it was made from.

    items: what the layers are shown, by default one of each micro task; those above 512 tokens, or with
    images beside videos, are left out. processor: what prepares the candidate's prompts, if not the one in
    its folder. Raises UserError when the baseline is quantised, the candidate holds compiled engines, the two
    differ in shape, or no item is left.
    """
    ours, theirs = Processor.load(baseline), processor or Processor.load(candidate)
    chosen = items or _one_of_each(load_suite("micro", 60, 0))
    conversations = [*probes(), *(item.messages for item in chosen)]
    found = _compare_prompts(ours, theirs, conversations)
    prompts = [_answered(ours, item) for item in chosen]
    fitting = [prompt for prompt in prompts if _fits(prompt)]
    if not fitting:
        raise UserError(f"no item has at most {LONGEST} tokens and media of one kind: choose another suite")
    rows = [*found, *_compare_layers(baseline, candidate, fitting, threads, progress)]
    first = next((row for row in rows if row.diverges), None)
    if first is None:
        return Divergence(
            None, "nothing is farther from the baseline than its rounding explains", tuple(rows)
        )
    return Divergence(first.place, _told(first), tuple(rows))


def _one_of_each(items: Iterable[Item]) -> list[Item]:
    return list({item.task: item for item in items}.values())


def _answered(processor: Processor, item: Item) -> Inputs:
    answer = processor.tokenizer.encode(item.answer, add_special_tokens=False).ids
    return processor(item.messages).extend(answer)


def _fits(prompt: Inputs) -> bool:
    return len(prompt.input_ids) <= LONGEST and len({media.kind for media in prompt.media}) <= 1


def _compare_prompts(ours: Prepare, theirs: Prepare, conversations: Sequence[Any]) -> list[Row]:
    """Pixels, tokens and positions of conversations; all must be equal."""
    pixels, tokens, positions = Sums(), [], []
    for messages in conversations:
        a, b = ours(messages), theirs(messages)
        for mine, other in zip(a.media, b.media, strict=True):  # both are of these messages
            pixels.add(mine.pixels, other.pixels)
        tokens.append(not np.array_equal(a.input_ids, b.input_ids))
        positions.append(not tokens[-1] and not np.array_equal(a.positions, b.positions))
    return [
        Row("pixels", "", pixels.distance, 0.0, 1e-6),
        Row("prompt", "", float(np.mean(tokens)), 0.0, 0.0),
        Row("positions", "", float(np.mean(positions)), 0.0, 0.0),
    ]


def _compare_layers(
    baseline: Path, candidate: Path, prompts: list[Inputs], threads: int | None, progress: Progress | None
) -> list[Row]:
    """Every place of the model, over all prompts."""
    from bench.traces.reference import trace
    from bench.traces.rounding import rounded
    from engines.reference import ReferenceSession

    if Checkpoint.open(baseline).quantization:
        raise UserError(f"{baseline} is quantised: expected the 16-bit checkpoint {candidate} was made from")
    session = ReferenceSession(baseline, dtype="float32", threads=threads)
    config = session.config
    run, formats, tolerance = _opened(candidate, config, threads)
    places = [*vision_places(config), *decoder_places(config), WORST]
    sums: dict[Place, Sums] = {place: Sums() for place in places}
    expected: dict[Place, Sums] = {place: Sums() for place in places}
    for done, prompt in enumerate(prompts, start=1):
        given = trace(session, prompt)
        with rounded(session.model, formats):
            plain = trace(session, prompt, given)
        seen, sizes = run(prompt, given), streams(given, prompt, config)
        for place in given:
            # The next norm divides by the stream: an error in a token where that is huge hardly counts.
            weight = 1 / _size(sizes[place]) if place in sizes else 1.0
            for target, values in ((sums, seen), (expected, plain)):
                # Of the angles each frequency by itself: the lowest turn next to nothing, and count.
                axis = 0 if place == ROTARY else None
                target[place].add(given[place], values[place], weight, axis)
                if place == LOGITS:
                    target[WORST].add(given[place], values[place], axis=0)
        if progress:
            progress(done, len(prompts))
    return [_row(place, sums[place], expected[place], tolerance) for place in places if sums[place].seen]


def _opened(
    candidate: Path, config: ModelConfig, threads: int | None
) -> tuple[Callable[[Inputs, Trace], Trace], Formats, float]:
    """How the candidate is traced, the formats of its linears, and what arithmetic alone may differ by."""
    _check_shapes(config, ModelConfig.load(candidate))
    if (candidate / DECODER).exists():
        from bench.traces.graphs import Graphs

        graphs = Graphs(candidate, threads=threads)
        return graphs.trace, graphs.formats, TOLERANCE[graphs.floats]
    from bench.traces.reference import trace
    from bench.traces.rounding import checkpoint_formats
    from engines.reference import ReferenceSession

    formats = checkpoint_formats(Checkpoint.open(candidate))
    session = ReferenceSession(candidate, dtype="float32", threads=threads)
    return partial(trace, session), formats, TOLERANCE[np.float32]


def _check_shapes(ours: ModelConfig, theirs: ModelConfig) -> None:
    for name, a, b in (
        ("decoder layers", ours.text.num_hidden_layers, theirs.text.num_hidden_layers),
        ("hidden size", ours.text.hidden_size, theirs.text.hidden_size),
        ("vocabulary", ours.text.vocab_size, theirs.text.vocab_size),
        ("vision blocks", ours.vision.depth, theirs.vision.depth),
    ):
        if a != b:
            raise UserError(f"{name}: the candidate has {b}, the baseline {a}; expected two of one model")


def _row(place: Place, found: Sums, plain: Sums, tolerance: float) -> Row:
    expected = plain.distance
    gain_limit = GAIN * expected + tolerance
    return Row(*place, found.distance, expected, SLACK * expected + tolerance, found.gain, gain_limit)


def _size(stream: NDArray[Any]) -> NDArray[Any]:
    size: NDArray[Any] = np.sqrt(np.square(stream).mean(-1, keepdims=True)) + 1e-12
    return size


def _told(row: Row) -> str:
    if row.place in ("prompt", "positions"):
        return f"{row.place}: {row.distance:.0%} of conversations differ from the baseline's"
    where = f"{row.place} {row.part}".strip()
    if row.distance <= row.limit:
        return f"{where}: {row.gain:.3f} times as strong, rounding explains 1 ± {row.gain_limit:.3f}"
    return f"{where}: {row.distance:.3g} of the baseline away, rounding explains up to {row.limit:.3g}"


class Sums:
    """Energies gathered over prompts: the baseline's, that of the difference, and their common part."""

    def __init__(self) -> None:
        self.seen = False
        self.baseline: Any = 0.0
        self.difference: Any = 0.0
        self.product: Any = 0.0

    def add(
        self, a: NDArray[Any], b: NDArray[Any], weight: NDArray[Any] | float = 1.0, axis: int | None = None
    ) -> None:
        """The baseline's rows a [T, .], the candidate's b, a weight of each; axis 0 keeps columns apart."""
        self.seen = True
        if a.shape != b.shape:
            self.difference = np.inf
            return
        a, b = a * weight, b * weight
        self.baseline += np.square(a).sum(axis, dtype=np.float64)
        self.difference += np.square(b - a).sum(axis, dtype=np.float64)
        self.product += (a * b).sum(axis, dtype=np.float64)

    @property
    def distance(self) -> float:
        """The largest, where columns are apart; one that is next to nothing counts as a tenth of the mean."""
        energy = np.maximum(self.baseline, np.mean(self.baseline) / 100)
        return float(np.sqrt(np.max(self.difference / (energy + TINY))))

    @property
    def gain(self) -> float:
        energy = np.sum(self.baseline)
        return float(np.sum(self.product) / energy) if energy else 1.0
