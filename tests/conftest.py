"""Fixtures shared by every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz", type=int, default=20, help="hostile requests of each kind to make up")
    parser.addoption("--crashes", type=int, default=1, help="random moments to kill `build all` at")


@pytest.fixture(scope="session")
def micro_checkpoint() -> Path:
    """The embedded, trained checkpoint."""
    return ROOT / "bench" / "micro" / "checkpoint"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: small tensors only wait for each other on more."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
