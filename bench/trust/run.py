"""`bench trust` from end to end: is the gate right about models whose truth is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.accuracy import Observation, evaluate
from bench.divergence import first_divergence
from bench.gate import gate
from bench.tasks import Item, Message
from bench.trust import answers, leak, slow
from bench.trust.plant import FAULTS, Code, Fault
from bench.trust.questions import questions
from bench.trust.rates import Rate, tally
from bench.trust.roundings import to_bfloat16, to_int4
from bench.verdict import Measurements, Verdict
from engines.checkpoint import Checkpoint
from engines.export import export
from engines.processor import Inputs, Processor
from engines.session import open_session
from engines.units import human_size

Answers = Sequence[Observation]
Tell = Callable[[str], None]
COARSE = 128  # columns that share a scale, where rounding to 4 bits turns many answers
MAX_TOKENS, BATCH = 8, 32
GROWTH = 65_536  # bytes that may be kept of a request
TIMED = 48  # different requests


@dataclass(frozen=True)
class Settings:
    """How much is drawn: verdicts on each candidate, from so many items or requests; the different items
    there are; fresh processes, for memory. Margins in points; slices are not judged without one.

    400 draws show a promise of 5 % to be kept with up to 11 wrong among them, so that of a gate which errs
    once in a hundred times one run in a thousand says otherwise; 150 processes, with up to two.
    """

    draws: int = 400
    items: int = 1000
    requests: int = 24
    pool: int = 1440
    processes: int = 150
    margin: float = 2.0
    slice_margin: float | None = 10.0
    latency_ratio: float = 1.15
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class Planted:
    """A fault at its full strength, all questions asked. place: where it is; named: where the candidate is
    first seen to leave the baseline, `detail` in words."""

    fault: str
    loss: answers.Loss
    verdict: Verdict
    place: str
    named: str | None
    detail: str

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "loss": self.loss.points, "slice": self.loss.slice}


@dataclass(frozen=True)
class Trust:
    """All that was found."""

    settings: Settings
    rates: list[Rate]
    planted: list[Planted]

    @property
    def held(self) -> bool:
        """Whether every promise is shown to be kept and every fault named where it is."""
        return all(rate.held for rate in self.rates) and all(x.named == x.place for x in self.planted)

    def document(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "settings": asdict(self.settings),
            "rates": [rate.document() for rate in self.rates],
            "planted": [one.document() for one in self.planted],
            "held": self.held,
        }


def run(checkpoint: Path, settings: Settings, tell: Tell) -> Trust:
    """Plants every fault in a dense checkpoint, asks every model all questions once, then draws."""
    items = questions(settings.pool, settings.seed)
    with TemporaryDirectory(prefix="trust-") as folder:
        work = Path(folder)
        sound = {"fp16": checkpoint, "bf16": work / "bf16", "int4": work / "int4", "coarse": work / "coarse"}
        to_bfloat16(checkpoint, sound["bf16"])
        to_int4(checkpoint, sound["int4"])
        to_int4(checkpoint, sound["coarse"], COARSE)
        artifacts = {name: _exported(source, work / f"{name}-onnx") for name, source in sound.items()}
        tell(f"{len(items)} questions to the baseline and to {len(artifacts)} sound models")
        baseline = _answers(checkpoint, items, settings)
        given = {name: _answers(artifact, items, settings) for name, artifact in artifacts.items()}
        rates = list(_equal_rates(baseline, given, settings, tell))
        planted = []
        for number, fault in enumerate(FAULTS):
            tell(f"fault: {fault.name}")
            source = work / f"fault-{number}"
            fault.plant(sound[fault.of], source)
            artifact = _exported(source, work / f"fault-{number}-onnx")
            with fault.code():
                damaged = _answers(artifact, items, settings)
            planted.append(_planted(fault, checkpoint, artifact, baseline, damaged, settings))
            rates += _damaged_rates(fault, baseline, damaged, settings)
        tell("latency")
        rates += _latency_rates(artifacts["fp16"], items, settings)
        if settings.processes:
            tell("memory")
            rates += _memory_rates(artifacts["fp16"], settings)
    return Trust(settings, rates, planted)


def _exported(source: Path, out: Path) -> Path:
    export(Checkpoint.open(source), out)
    return out


def _answers(directory: Path, items: Sequence[Item], settings: Settings) -> list[Observation]:
    session, processor = open_session(directory, threads=settings.threads), Processor.load(directory)
    return evaluate(session, processor, items, max_tokens=MAX_TOKENS, batch_size=BATCH)


def _equal_rates(
    baseline: Answers, given: Mapping[str, Answers], settings: Settings, tell: Tell
) -> Iterator[Rate]:
    named = {
        "the same weights": baseline,
        "ONNX fp16": given["fp16"],
        "rounded to bfloat16": given["bf16"],
        "rounded to 4 bits, made as good": given["coarse"],
    }
    for name, candidate in named.items():
        tell(f"equal: {name}")
        yield Rate(name, "equal", Verdict.FAIL, _drawn(baseline, candidate, settings, swap=True))


def _planted(
    fault: Fault, checkpoint: Path, artifact: Path, baseline: Answers, damaged: Answers, settings: Settings
) -> Planted:
    asked = answers.limits(settings.margin, settings.slice_margin)
    judged = gate(Measurements("baseline", fault.name, baseline, damaged), asked)
    prepare = partial(_prepared, Processor.load(artifact), fault.code)
    found = first_divergence(checkpoint, artifact, processor=prepare, threads=settings.threads)
    loss = answers.furthest_loss(baseline, damaged, asked)
    return Planted(fault.name, loss, judged.verdict, fault.place, found.place, found.detail)


def _prepared(processor: Processor, code: Code, messages: Sequence[Message]) -> Inputs:
    with code():
        return processor(messages)


def _damaged_rates(fault: Fault, baseline: Answers, damaged: Answers, settings: Settings) -> Iterator[Rate]:
    """At twice the margin, where the fault does so much harm; of the first also at the margin itself, where
    the test errs as often as it says, which no interval can show to be less."""
    loss = answers.furthest_loss(baseline, damaged, answers.limits(settings.margin, settings.slice_margin))
    if loss.share <= 1:
        truth = f"{loss.share * loss.points:.1f} points worse" + loss.where
        drawn = _drawn(baseline, damaged, settings, share=loss.share)
        yield Rate(fault.name, truth, Verdict.PASS, drawn)
    overall = replace(settings, slice_margin=None)
    loss = answers.furthest_loss(baseline, damaged, answers.limits(settings.margin, None))
    if fault is FAULTS[0] and loss.share <= 2:
        drawn = _drawn(baseline, damaged, overall, share=loss.share / 2)
        truth = f"{settings.margin:g} points worse, at the margin itself"
        yield Rate(fault.name, truth, Verdict.PASS, drawn, promise=None)


def _drawn(
    baseline: Answers, candidate: Answers, settings: Settings, share: float = 1.0, swap: bool = False
) -> dict[Verdict, int]:
    return tally(
        answers.verdicts(
            baseline,
            candidate,
            answers.limits(settings.margin, settings.slice_margin),
            draws=settings.draws,
            items=settings.items,
            seed=settings.seed,
            share=share,
            swap=swap,
        )
    )


def _latency_rates(artifact: Path, items: Sequence[Item], settings: Settings) -> Iterator[Rate]:
    timed = items[:: max(1, len(items) // TIMED)][:TIMED]
    drawn = partial(
        slow.verdicts,
        slow.record(artifact, timed, threads=settings.threads),
        limit=settings.latency_ratio,
        draws=settings.draws,
        requests=settings.requests,
        seed=settings.seed,
    )
    yield Rate("the same arm, its latency", "as fast", Verdict.FAIL, tally(drawn(slower=1.0)))
    twice = 2 * settings.latency_ratio - 1
    yield Rate("a slow arm", f"x{twice:.2f}", Verdict.PASS, tally(drawn(slower=twice)))


def _memory_rates(artifact: Path, settings: Settings) -> Iterator[Rate]:
    drawn = partial(leak.verdicts, artifact, limit=GROWTH, processes=settings.processes)
    yield Rate("the same arm, its memory", "keeps nothing", Verdict.FAIL, tally(drawn(kept=0)))
    truth = f"keeps {human_size(2 * GROWTH)} of each request"
    yield Rate("a leaking arm", truth, Verdict.PASS, tally(drawn(kept=2 * GROWTH)))
