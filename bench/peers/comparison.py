"""`python -m bench peers` from end to end: install, convert, measure, and the page about it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.peers.catalogue import PEERS, Peer
from bench.peers.environments import converted, interpreter
from bench.peers.machine import machine
from bench.peers.measure import Arm, Results, measure
from bench.peers.table import Row, document, markdown, rows
from engines.config import ModelConfig
from engines.errors import UserError

WORKERS = "bench.peers.workers"


@dataclass(frozen=True)
class Comparison:
    """What was found, as lines of a table, as a page, and as one JSON object."""

    rows: list[Row]
    results: Results
    page: str
    document: dict[str, Any]
    name: str = "peers"

    def write(self, folder: Path) -> list[Path]:
        """The page and the object in `folder`, as .md and .json."""
        folder.mkdir(parents=True, exist_ok=True)
        page, data = folder / f"{self.name}.md", folder / f"{self.name}.json"
        page.write_text(self.page, encoding="utf-8")
        data.write_text(json.dumps(self.document, indent=1) + "\n", encoding="utf-8")
        return [page, data]


def compare(
    checkpoint: Path,
    artifacts: Sequence[Path],
    *,
    only: Sequence[str],
    folder: Path,
    rounds: int,
    threads: int,
    tell: Callable[[str], None],
) -> Comparison:
    """Measure our artifacts, the first being what ratios refer to, and the peers beside them.

    only: beginnings of peers' names, all if empty. folder: keeps environments and converted models. A peer
    that cannot be installed, converted or run is left with its reason; UserError if an artifact cannot.
    """
    config = ModelConfig.load(checkpoint)
    arms = [_ours(artifact) for artifact in artifacts]
    problems: dict[str, str] = {}
    for peer in chosen(only):
        try:
            arms.append(_arm(peer, checkpoint.resolve(), folder.resolve(), tell))
        except UserError as error:
            problems[peer.name] = str(error)
            tell(f"{peer.name}: {error}")
    results = measure(arms, vocabulary=config.text.vocab_size, rounds=rounds, threads=threads, tell=tell)
    for arm in arms[: len(artifacts)]:
        if arm.name in results.problems:
            raise UserError(f"{arm.name}: {results.problems[arm.name]}")
    results.problems = {**problems, **results.problems}
    found, here = rows(results, arms, config.text), machine()
    # Names instead of paths: a result is read on other machines.
    arguments = [part for path in artifacts for part in ("--artifact", path.name)] + [f"--rounds={rounds}"]
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    header = (
        f"{date}, commit {here.commit}, {threads} threads, {rounds} rounds, checkpoint `{checkpoint.name}`, "
        f"by `python -m bench peers {shlex.join([checkpoint.name, *arguments])}`."
    )
    conditions = {"date": date, "checkpoint": checkpoint.name, "threads": threads, "rounds": rounds}
    return Comparison(
        found,
        results,
        markdown(found, results.problems, here, results.speeds, header),
        document(found, results, here, conditions),
    )


def chosen(only: Sequence[str]) -> list[Peer]:
    """The peers whose names begin so, whatever the case; UserError for a beginning that none has."""
    for start in only:
        if not any(peer.name.lower().startswith(start.lower()) for peer in PEERS):
            raise UserError(f"no peer begins with {start!r}: {', '.join(peer.name for peer in PEERS)}")
    return [peer for peer in PEERS if not only or peer.name.lower().startswith(tuple(map(str.lower, only)))]


def _ours(artifact: Path) -> Arm:
    command = (sys.executable, "-m", f"{WORKERS}.onnx", str(artifact.resolve()))
    return Arm(artifact.resolve().name, command)


def _arm(peer: Peer, checkpoint: Path, folder: Path, tell: Callable[[str], None]) -> Arm:
    python = interpreter(peer.environment, folder, tell)
    model = converted(peer.model, checkpoint, folder, tell)
    return Arm(
        peer.name,
        (str(python), "-m", f"{WORKERS}.{peer.worker}", str(model)),
        peer.rounds,
    )
