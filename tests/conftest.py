"""Fixtures shared by every test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`python -m build` with words that it must refuse; its one line."""
    from build.__main__ import main

    def call(*words: object) -> str:
        assert main([str(word) for word in words]) == 1
        (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error: ")]
        return line

    return call


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring this machine takes seconds, and few tests ask how fast it is."""
    from build.rates import Machine
    from build.select import devices

    monkeypatch.setattr(devices, "_measured", lambda: Machine(flops=1e11, read=2e10, hashed=1e9))
