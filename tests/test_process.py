"""Work apart: results, errors and progress come back, memory does not, and a death is told."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from bench.process import apart
from engines.errors import UserError


def halve(number: int, progress: Callable[[int, int], None] | None = None) -> tuple[int, int]:
    if progress:
        progress(1, 2)
        progress(2, 2)
    return os.getpid(), number // 2


def fail(error: Exception) -> None:
    raise error


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_it_runs_elsewhere_and_reports_back() -> None:
    steps: list[tuple[int, int]] = []
    process, half = apart(halve, 6, progress=lambda done, total: steps.append((done, total)))
    assert (process != os.getpid(), half, steps) == (True, 3, [(1, 2), (2, 2)])
    assert apart(halve, number=8)[1] == 4


@pytest.mark.parametrize("error", [UserError("no such layer"), OSError(28, "No space left on device")])
def test_errors_come_back_as_they_were(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error.args[-1])):
        apart(fail, error)


def test_a_death_is_one_clear_line() -> None:
    with pytest.raises(
        UserError, match=r"its process was killed \(signal 9\), most likely as memory ran out"
    ):
        apart(die)
