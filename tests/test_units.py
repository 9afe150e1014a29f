"""Bytes and seconds as people read them."""

from __future__ import annotations

import pytest

from engines.units import duration, human_size


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (4_236_000, "4.24 MB"), (999_900_000, "1 GB"), (-326.5e6, "-326 MB")],
)
def test_sizes_are_told_in_decimal_units(size: float, shown: str) -> None:
    assert human_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (89, "89 s"), (95, "2 min"), (3570, "1 h 00 min"), (3900, "1 h 05 min")],
)
def test_durations_are_short(seconds: float, told: str) -> None:
    assert duration(seconds) == told
