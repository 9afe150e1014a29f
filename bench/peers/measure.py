"""The measurement: every engine in turn, each in a fresh process of its own, on the same prompts.

One engine runs at a time, so that its memory and idle threads are nobody else's; rounds go A B C, C B A.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.environments import ROOT, child_environment
from bench.peers.machine import Speed, speed
from engines.device import Usage, Watch
from engines.errors import UserError

CONTEXT, TOKENS = 512, 32  # one sequence: prompt, and tokens generated
TOGETHER, TOGETHER_CONTEXT, TOGETHER_TOKENS = 8, 64, 16  # the same for many at once
IMAGE = 448  # pixels, both ways
LIMIT_S = 300.0  # for one answer


@dataclass(frozen=True)
class Arm:
    """An engine and its model: the command that starts its worker."""

    name: str
    command: tuple[str, ...]
    rounds: int | None = None  # at most
    device: str = "cpu"  # or cuda


@dataclass(frozen=True)
class Visit:
    """What one process of an arm showed in one round; times in seconds, memory in bytes."""

    round: int
    about: dict[str, Any]
    load_to_first_token: float
    prefill: float  # CONTEXT tokens, to the first one generated
    decode: list[float]  # each further token
    together: list[float]  # each step of TOGETHER sequences
    vision: float | None
    vision_problem: str
    together_problem: str
    text_memory: int  # peak, before an image was shown
    memory: int  # peak
    gpu: Usage | None = None  # what it showed, where the arm runs on one


@dataclass
class Results:
    """Visits of every arm in order, and why an arm has none."""

    visits: dict[str, list[Visit]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)


def measure(
    arms: Sequence[Arm],
    *,
    vocabulary: int,
    rounds: int,
    threads: int,
    tell: Callable[[str], None],
    speed: Callable[[int], Speed] = speed,
) -> Results:
    """Visit every arm in every round. An arm that fails is not visited again, and is left with its reason.

    vocabulary: tokens the model knows; prompts are made of ordinary ones. speed: looks at the machine on so
    many threads, in every round.
    """
    results = Results(visits={arm.name: [] for arm in arms})
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            results.speeds.append(speed(threads))
            prompts, images = _material(number, vocabulary, Path(folder))
            for arm in arms if number % 2 == 0 else arms[::-1]:
                if arm.name in results.problems or number >= (arm.rounds or rounds):
                    continue
                tell(f"round {number + 1} of {rounds}: {arm.name}")
                try:
                    results.visits[arm.name].append(_visit(arm, number, prompts, images, threads))
                except UserError as error:
                    results.problems[arm.name] = str(error)
                    results.visits[arm.name] = []
    return results


def _material(number: int, vocabulary: int, folder: Path) -> tuple[list[list[int]], list[Path]]:
    """Random tokens, which no cache of prefixes knows, for one sequence and for many; and new pictures."""
    from PIL import Image

    rng = np.random.default_rng(number)
    lengths = (8, CONTEXT, *(TOGETHER * (TOGETHER_CONTEXT,)))
    prompts = [rng.integers(vocabulary // 100, vocabulary // 2, length).tolist() for length in lengths]
    images = [folder / f"{number}{letter}.png" for letter in "ab"]
    for path in images:
        coarse = Image.fromarray(rng.integers(0, 256, (14, 14, 3), np.uint8))
        coarse.resize((IMAGE, IMAGE), Image.Resampling.BICUBIC).save(path)
    return prompts, images


def _visit(arm: Arm, number: int, prompts: list[list[int]], images: list[Path], threads: int) -> Visit:
    with nullcontext() if arm.device == "cpu" else Watch() as gpu, Worker(arm, threads) as worker:
        about = worker.answer()
        load = about.pop("load")
        short, long, together = prompts[:1], prompts[1:2], prompts[2:]
        first = worker.ask(generate=short, count=2)["seconds"][0]
        alone = worker.ask(generate=long, count=TOKENS)["seconds"]
        text_memory = worker.peak_memory()
        try:
            many, alone_only = worker.ask(generate=together, count=TOGETHER_TOKENS)["seconds"], ""
        except UserError as error:
            if arm.device == "cpu":
                raise
            many, alone_only = [], str(error)  # engines built for one sequence
        try:
            # The first picture opens the tower; the second is timed.
            vision, problem = [worker.ask(vision=str(path))["seconds"] for path in images][-1], ""
        except UserError as error:
            vision, problem = None, str(error)
        return Visit(
            round=number,
            about=about,
            load_to_first_token=load + first,
            prefill=alone[0],
            decode=alone[1:],
            together=many[1:],
            vision=vision,
            vision_problem=problem,
            together_problem=alone_only,
            text_memory=text_memory,
            memory=worker.peak_memory(),
            gpu=gpu.usage() if gpu else None,
        )


class Worker:
    """A process that answers requests, see workers/protocol.py; ended on leaving."""

    def __init__(self, arm: Arm, threads: int) -> None:
        self.name = arm.name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed on leaving
        # Libraries that read no option take their number of threads from here.
        environment = {**child_environment(), "OMP_NUM_THREADS": str(threads)}
        self.process = subprocess.Popen(
            [*arm.command, str(threads), *([arm.device] if arm.device != "cpu" else [])],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; UserError with its reason when it could not be done."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass  # it is gone: the answer tells
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self.process.stdout
        timer = threading.Timer(LIMIT_S, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        overdue = not timer.is_alive()
        timer.cancel()
        if overdue:
            raise UserError(f"no answer within {LIMIT_S:.0f} s")
        if not line:
            raise UserError(f"ended with code {self.process.wait()}: {self._last_error()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise UserError(answer["error"])
        return answer

    def peak_memory(self) -> int:
        """The most memory the process has held, in bytes, mapped weights included."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))

    def _last_error(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else "it said nothing"
