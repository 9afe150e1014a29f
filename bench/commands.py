"""What each `python -m bench` command does: results on stdout, progress on stderr, exit code returned."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from bench.accuracy import summarize, write_observations
from bench.comparison import answers
from bench.planning import items_planned
from bench.stored import write_run
from bench.suites.catalogue import load_suite
from bench.tables import divergence_table, score_table, show, tell
from bench.timing import progress
from bench.verdict import EXIT
from engines.errors import UserError
from engines.session import open_session
from engines.units import human_size

if TYPE_CHECKING:
    from bench.peers.comparison import Comparison


def accuracy(options: Namespace) -> int:
    """Score by task with its standard error, interval and guessing level."""
    if options.record and options.record.exists():
        raise UserError(f"{options.record} already exists: choose another folder, or remove it first")
    items = load_suite(options.suite, options.items, options.seed)
    session = open_session(options.directory, threads=options.threads)
    observations = answers(session, options.directory, items, options)
    if options.out:
        write_observations(options.out, observations)
    if options.record:
        write_run(options.record, options.directory, session, items, observations, options.max_tokens)
    scores = summarize(observations)
    show(
        score_table(scores),
        {"path": str(options.directory), "scores": [asdict(score) for score in scores]},
        options,
    )
    return 0


def plan_n(options: Namespace) -> int:
    """Items for a margin: in all, and in each of several slices that must all pass."""
    margin, flips, loss = options.margin / 100, options.flips / 100, options.loss / 100
    if not 0 <= loss < margin < 1 or not loss <= flips <= 1:
        found = f"margin {options.margin:g}, loss {options.loss:g}, flips {options.flips:g}"
        raise UserError(f"{found}: expected 0 <= loss < margin < 100 and loss <= flips <= 100")
    each = items_planned(options.slices, flips, margin, options.power, 1 - options.confidence, -loss)
    shown = Table("slices", "items in each", "items in all", box=None, header_style="bold")
    shown.add_row(str(options.slices), f"{each:,}", f"{each * options.slices:,}")
    show(shown, {"slices": options.slices, "items_each": each, "items": each * options.slices}, options)
    return 0


def divergence(options: Namespace) -> int:
    """Every place of the model, and the first that rounding does not explain; exit code 3 if there is one."""
    from bench.divergence import first_divergence

    items = load_suite(options.suite, options.items, options.seed)
    pair = (options.baseline, options.candidate)
    found = first_divergence(*pair, items=items, threads=options.threads, progress=progress("prompts"))
    shown = divergence_table(found)
    show(shown, {"baseline": str(pair[0]), "candidate": str(pair[1]), **found.document()}, options)
    return EXIT["PASS" if found.place is None else "FAIL"]


def peers(options: Namespace) -> int:
    """Our artifacts beside other engines; the table is also written."""
    from bench.peers.comparison import compare as compare_engines
    from bench.peers.table import COLUMNS, cells

    found = compare_engines(
        options.checkpoint,
        options.artifact,
        only=options.only,
        folder=options.envs,
        rounds=options.rounds,
        threads=options.threads or os.cpu_count() or 1,
        tell=tell,
    )
    _present(found, COLUMNS, [cells(row) for row in found.rows], options)
    return 0


def gpu(options: Namespace) -> int:
    """A checkpoint's arms on this machine's GPU; the table is also written."""
    from bench.gpu import COLUMNS, cells, compare_on_gpu

    found = compare_on_gpu(
        options.checkpoints,
        folder=options.work,
        rounds=options.rounds,
        tell=tell,
    )
    _present(found, COLUMNS, [cells(row, found.results) for row in found.rows], options)
    return 0


def _present(
    found: Comparison, columns: Sequence[str], lines: Sequence[Sequence[str]], options: Namespace
) -> None:
    """A comparison on the terminal and in its files."""
    shown = Table(*columns, box=None, header_style="bold")
    for line in lines:
        shown.add_row(*line)
    for name, reason in found.results.problems.items():
        tell(f"{name} not measured: {reason}")
    written = [str(path) for path in found.write(options.out)]
    tell(f"written: {', '.join(written)}")
    show(shown, found.document, options)


def router(options: Namespace) -> int:
    """A row for each proxy, ratios to nginx; how soon rollbacks took effect."""
    from bench.router.comparison import compare

    shown, result = compare(options)
    show(shown, result, options)
    return 0


def micro(options: Namespace) -> int:
    """Trains the embedded checkpoint from nothing."""
    from bench.micro.train import train

    steps = {} if options.steps is None else {"steps": options.steps}
    found = train(options.out, threads=options.threads, **steps)
    shown = Table("task", "accuracy %", "guess %", box=None, header_style="bold")
    for task, value in found["accuracy"].items():
        shown.add_row(task, f"{value:.1f}", f"{found['guess'][task]:.1f}")
    show(shown, {"out": str(options.out), **found}, options)
    return 0


def shape(options: Namespace) -> int:
    """A random checkpoint of a real model's shape."""
    from bench.shape import SHAPES, write_shape

    if options.shape not in SHAPES:
        raise UserError(f"no shape {options.shape!r}: expected one of {', '.join(SHAPES)}")
    if options.seed < 0:
        raise UserError(f"seed is {options.seed}: expected 0 or more")
    report = progress(f"{options.out} bytes")
    found = write_shape(options.out, SHAPES[options.shape], seed=options.seed, progress=report)
    shown = Table("shape", "parameters", "weights", "path", box=None, header_style="bold")
    size = human_size(found["bytes"])
    shown.add_row(options.shape, f"{found['parameters']:,}", size, str(options.out))
    show(shown, {"out": str(options.out), "shape": options.shape, **found}, options)
    return 0
