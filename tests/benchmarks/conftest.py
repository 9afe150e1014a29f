"""What the benchmarks run on, and the floor beside each: what their bytes and operations need at least."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.peers.machine import Speed, speed
from engines.checkpoint import Checkpoint
from engines.export import export
from engines.onnx_session import OnnxSession
from engines.processor import Inputs, Processor

THREADS = os.cpu_count() or 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--artifact", type=Path, metavar="DIR", help="ONNX artifact; by default the embedded checkpoint's"
    )


@pytest.fixture(scope="session")
def artifact(
    pytestconfig: pytest.Config, micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if given := pytestconfig.getoption("--artifact"):
        return Path(given)
    out = tmp_path_factory.mktemp("benchmarks") / "artifact"
    export(Checkpoint.open(micro_checkpoint), out)
    return out


@pytest.fixture(scope="session")
def session(artifact: Path) -> OnnxSession:
    return OnnxSession(artifact)


@pytest.fixture(scope="session")
def processor(artifact: Path) -> Processor:
    return Processor.load(artifact)


@pytest.fixture(scope="session")
def prompt(session: OnnxSession) -> Inputs:
    """512 tokens of text."""
    ids = np.random.default_rng(0).integers(0, session.config.text.vocab_size // 2, 512)
    return Inputs(ids, np.tile(np.arange(512), (3, 1)), (), 512)


@pytest.fixture(scope="session")
def machine(pytestconfig: pytest.Config) -> Speed:
    """Bytes read and fp32 operations a second; what they are does not matter where nothing is timed."""
    return Speed(1e9, 1e9) if pytestconfig.getoption("benchmark_disable") else speed(THREADS)


@pytest.fixture
def floor(benchmark: Any, machine: Speed) -> Callable[..., None]:
    """Notes the seconds that the machine needs at least: it reads so many bytes, it multiplies so often."""

    def note(*, read: float = 0, operations: float = 0) -> None:
        benchmark.extra_info["floor"] = max(read / machine.read, operations / machine.fp32)

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """ "decode step: 44 ms, floor 38 ms (86 %)", and what other benchmarks have to say."""
    found = getattr(config, "_benchmarksession", None)
    for item in found.benchmarks if found else []:
        name = item.name.removeprefix("test_").replace("_", " ")
        if "floor" in item.extra_info and item.stats.data:
            took, least = item.stats.median, item.extra_info["floor"]
            line = f"{name}: {1e3 * took:.3g} ms, floor {1e3 * least:.2g} ms ({least / took:.0%})"
            terminalreporter.write_line(line)
        if line := item.extra_info.get("line"):
            terminalreporter.write_line(line)
