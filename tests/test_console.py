"""Time remaining by the pace of recent units, on a clock the test turns."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from build import console
from build.console import RECENT, Console, Pace


def test_time_remaining_is_that_of_an_even_pace() -> None:
    pace = Pace()
    assert pace.seconds_left(0, 10, 100.0) is None
    assert [pace.seconds_left(i, 10, 100.0 + 3 * i) for i in range(1, 11)] == [
        27, 24, 21, 18, 15, 12, 9, 6, 3, 0,
    ]  # fmt: skip


def test_work_of_an_earlier_run_has_no_pace() -> None:
    pace = Pace()
    pace.seconds_left(20, 28, 0.0)
    assert pace.seconds_left(21, 28, 60.0) == 7 * 60


def test_only_recent_units_count() -> None:
    pace = Pace()
    for i in range(20):
        pace.seconds_left(i, 100, float(i))
    now = 19.0
    for i in range(20, 20 + RECENT):  # from here on ten times slower
        now += 10
        left = pace.seconds_left(i, 100, now)
    assert left == pytest.approx(10 * (100 - i))


def test_a_new_step_begins_a_new_count() -> None:
    pace = Pace()
    for i in range(33):
        pace.seconds_left(i, 32, i * 100.0)
    assert pace.seconds_left(0, 28, 3200.0) is None
    assert pace.seconds_left(1, 28, 3205.0) == 27 * 5


def test_plain_lines_tell_the_time_remaining(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with Console().progress("gptq layers") as report:
        for done in range(5):
            report(done, 4)
            now[0] += 6
    lines = [line.split("s ", 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["gptq layers: 2/4, about 12 s to go"]
