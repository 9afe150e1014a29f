"""What an arm's processor time a token goes to besides the model: scheduling, detokenising, JSON and HTTP.

    .venv/bin/python -m tests.benchmarks.arm_overhead [--streams 8] [--vocabulary 151936] [--output-tokens N]

An arm whose model is a clock: a step takes STEP seconds of no processor time and always says the same. What
its process spends is therefore all overhead. The clients are the load command's, in this process, uncounted.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import uvicorn
from numpy.typing import NDArray

from bench.client import Load, request
from bench.load import run
from engines.config import ModelConfig
from engines.onnx_vision import UNSEEN, VisionTokens
from engines.processor import Inputs, Processor
from engines.slots import Slot
from serve.arm.arm import Arm, Settings
from serve.arm.metrics import Metrics
from serve.arm.model import Model
from serve.arm.scheduler import Scheduler
from serve.arm.server import http_config

STEP = 0.005  # seconds
CHECKPOINT = Path("bench/micro/checkpoint")


@dataclass(eq=False)
class Clock:
    """Slots of no model."""

    config: ModelConfig
    count: int
    logits: NDArray[np.float32]
    capacity: int = 4096
    active: list[Slot] = field(default_factory=list)

    def see(self, prompt: Inputs) -> VisionTokens:
        return UNSEEN

    def open(self, prompt: Inputs, vision: VisionTokens) -> Slot | None:
        return Slot(0, np.empty(0, np.int64)) if len(self.active) < self.count else None

    def prefill(self, slot: Slot, limit: int) -> NDArray[np.float32]:
        slot.length += 1
        self.active.append(slot)
        return self.logits

    def decode(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        time.sleep(STEP)
        return np.broadcast_to(self.logits, (len(tokens), len(self.logits)))

    def close(self, slot: Slot) -> None:
        self.active.remove(slot)


def serve(listener: socket.socket, streams: int, vocabulary: int) -> None:
    """The arm, as serve.arm.server runs it."""
    processor, metrics = Processor.load(CHECKPOINT), Metrics()
    logits = np.random.default_rng(0).normal(size=vocabulary).astype(np.float32)
    logits[processor.tokenizer.encode("A", add_special_tokens=False).ids[0]] = 20
    slots = Clock(processor.config, streams, logits)
    arm = Arm(Settings("clock", slots=streams), metrics)
    arm.model = Model(processor, slots, Scheduler(slots, metrics), {"temperature": 0.0})
    arm.model.scheduler.start()
    config = http_config(arm)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve(sockets=[listener]))


def spent(load: Load) -> tuple[float, float]:
    """Processor seconds and tokens of the arm so far."""
    with request(load, "GET", "/metrics") as response:
        lines = dict(line.rsplit(" ", 1) for line in response.read().decode().splitlines() if line[0] != "#")
    return float(lines["process_cpu_seconds_total"]), float(lines["arm_output_tokens_total"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=8)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        context = multiprocessing.get_context("fork")
        server = context.Process(
            target=serve, args=(listener, options.streams, options.vocabulary), daemon=True
        )
        server.start()
        load = Load(
            f"http://127.0.0.1:{listener.getsockname()[1]}", options.seconds, options.output_tokens, images=0
        )
        run(replace(load, seconds=1), options.streams)
        before = spent(load)
        tally = run(load, options.streams)
        seconds, tokens = (after - start for start, after in zip(before, spent(load), strict=True))
        server.terminate()
        server.join()
    assert not tally.errors
    each = 1e6 * seconds / tokens
    print(
        f"{options.streams} streams, {tokens:.0f} tokens: {each:.0f} us of the arm's processor time for each"
    )


if __name__ == "__main__":
    main()
