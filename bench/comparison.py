"""`bench compare`: the gate on B against A, both of them here, or A as a run of it was kept."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from bench.accuracy import Observation, evaluate
from bench.fidelity import Fidelity, record
from bench.fidelity import compare as compare_distributions
from bench.gate import Limits, Measurements, gate
from bench.latency import AGAIN, single
from bench.resources import disk_bytes, peak_memory
from bench.stored import FIDELITY_ITEMS, digest, is_run, read_run
from bench.suites.catalogue import load_suite
from bench.tables import gate_table, show
from bench.tasks import Item
from bench.timing import progress, timings
from bench.verdict import EXIT
from engines.errors import UserError
from engines.processor import Processor
from engines.session import Session, open_session

MAX_GROWTH = 65_536  # bytes that may be kept of a request
LATENCY = ("ttft_p50_ratio", "itl_p50_ratio", "e2e_ratio")


def compare(options: Namespace) -> int:
    """The gate on B against A: accuracy, divergence, size and memory, and latency where A is here to run."""
    limits = _limits(options)
    if is_run(options.baseline):
        limits = limits.model_copy(update=dict.fromkeys(LATENCY))
        measured, fidelity = _with_a_run(options, limits)
    else:
        measured, fidelity = _side_by_side(options, limits)
    judged = gate(measured, limits)
    document = {**judged.model_dump(mode="json"), "fidelity": fidelity.model_dump()}
    show(gate_table(judged), document, options)
    if not options.json:
        print(
            f"{judged.verdict}: {options.candidate} against {options.baseline}; "
            f"KL {fidelity.kl_mean:.2g} nats, top-1 agreement {fidelity.top1_agreement:.1%}, "
            f"{fidelity.answer_flip_rate:.1%} of answers flipped"
        )
    return EXIT[judged.verdict]


def answers(
    session: Session, directory: Path, items: Sequence[Item], options: Namespace
) -> list[Observation]:
    """What a variant says to all items."""
    return evaluate(
        session,
        Processor.load(directory),
        items,
        max_tokens=options.max_tokens,
        batch_size=options.batch_size,
        progress=progress(f"{directory} answers"),
    )


def _side_by_side(options: Namespace, limits: Limits) -> tuple[Measurements, Fidelity]:
    items = load_suite(options.suite, options.items, options.seed)
    sides = {"A": options.baseline, "B": options.candidate}
    sessions = {side: open_session(path, threads=options.threads) for side, path in sides.items()}
    given = {side: answers(sessions[side], path, items, options) for side, path in sides.items()}
    few, along = items[:FIDELITY_ITEMS], given["A"][:FIDELITY_ITEMS]
    recorded = {
        side: record(sessions[side], Processor.load(path), few, along) for side, path in sides.items()
    }
    fidelity = compare_distributions(recorded["A"], recorded["B"], given["A"], given["B"])
    timed = timings({"A": sides["A"], "A" + AGAIN: sides["A"], "B": sides["B"]}, options, sessions)
    del sessions, recorded
    memory = [peak_memory(path, context=limits.context, batch=limits.batch) for path in sides.values()]
    measured = Measurements(
        baseline=digest(options.baseline),
        candidate=digest(options.candidate),
        baseline_answers=given["A"],
        candidate_answers=given["B"],
        baseline_timings=single(timed, "A"),
        again_timings=single(timed, "A" + AGAIN),
        candidate_timings=single(timed, "B"),
        fidelity=fidelity,
        bytes=disk_bytes(options.candidate),
        baseline_bytes=disk_bytes(options.baseline),
        peak_memory_bytes=memory[1].peak_memory_bytes,
        baseline_peak_memory_bytes=memory[0].peak_memory_bytes,
        memory_at=(limits.context, limits.batch),
        resident_bytes=memory[1].resident_bytes,
    )
    return measured, fidelity


def _with_a_run(options: Namespace, limits: Limits) -> tuple[Measurements, Fidelity]:
    """B is asked what A was asked; no latency, which is of one machine and one moment."""
    run = read_run(options.baseline)
    options.max_tokens = run.facts.max_tokens
    told = f"{len(run.items)} questions, answers of at most {run.facts.max_tokens} tokens"
    print(f"{options.baseline} is a run of {run.facts.path}: {told}, no latency", file=sys.stderr)
    session = open_session(options.candidate, threads=options.threads)
    given = answers(session, options.candidate, run.items, options)
    few = run.items[:FIDELITY_ITEMS]
    recorded = record(session, Processor.load(options.candidate), few, run.answers[:FIDELITY_ITEMS])
    fidelity = compare_distributions(run.distributions, recorded, run.answers, given)
    del session
    memory = peak_memory(options.candidate, context=limits.context, batch=limits.batch)
    measured = Measurements(
        baseline=run.facts.digest,
        candidate=digest(options.candidate),
        baseline_answers=run.answers,
        candidate_answers=given,
        fidelity=fidelity,
        bytes=disk_bytes(options.candidate),
        baseline_bytes=run.facts.bytes,
        peak_memory_bytes=memory.peak_memory_bytes,
        memory_at=(limits.context, limits.batch),
        resident_bytes=memory.resident_bytes,
    )
    return measured, fidelity


def _limits(options: Namespace) -> Limits:
    try:
        return Limits(
            accuracy_margin=options.accuracy_margin,
            slice_margin=options.slice_margin,
            max_growth_bytes=MAX_GROWTH,
            context=options.context,
            batch=options.batch,
            **dict.fromkeys(LATENCY, options.latency_ratio),
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]} is {first['input']}: {first['msg']}") from None
