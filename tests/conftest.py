"""Fixtures shared by every test."""

from __future__ import annotations

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
