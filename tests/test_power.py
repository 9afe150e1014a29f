"""Power, energy, heat and money by hand; what a machine does not tell is not zero."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.latency import Timing
from bench.power import UNPRICED, UNREADABLE, observed, sentence, spent
from engines.sensors import Meter, energies, temperatures


def timing(e2e_ms: float, joules: float | None, celsius: float | None) -> Timing:
    return Timing("a", 0, 0, 9, 10, 1.0, 1.0, e2e_ms, 1.0, batch=1, energy_j=joules, temperature_c=celsius)


ROWS = [timing(500, 20.0, 60.0), timing(1500, 60.0, 65.0)]  # 2 s, 80 J, 20 tokens


def test_figures_by_hand() -> None:
    """80 J in 2 s; 80 J for 20 tokens; 3.6 an hour are 0.001 a second, 0.002 for 20 tokens."""
    assert list(spent(ROWS, 3.6).values()) == pytest.approx([40.0, 65.0, 4000.0, 100.0])


def test_one_unreadable_request_leaves_the_energy_unknown() -> None:
    found = spent([*ROWS, timing(500, None, None)], None)
    assert list(found.values()) == [None, 65.0, None, None]
    with pytest.raises(ValueError, match="found no timings"):
        spent([], None)


def test_what_is_not_known_says_why() -> None:
    blind = [timing(500, None, None)]
    rows = observed(blind, blind, None, "EUR")
    assert {row.candidate for row in rows} == {None}
    assert [row.reason for row in rows] == [UNREADABLE] * 3 + [UNPRICED]
    assert sentence(rows) == (
        "power, temperature, energy per 1,000 tokens: not readable on this machine; "
        "cost per million tokens: no price in the recipe (price.per_hour)"
    )
    assert observed([], blind, None, "EUR") == observed(blind, [], None, "EUR") == []


def test_rows_compare_with_the_baseline() -> None:
    rows = {row.metric: row for row in observed(ROWS, [timing(500, 10.0, 50.0)], 3.6, "EUR")}
    energy, cost = rows["energy per 1,000 tokens"], rows["cost per million tokens"]
    assert (energy.baseline, energy.candidate, energy.delta) == pytest.approx((4000, 1000, -3000))
    assert (cost.unit, cost.candidate) == ("EUR", pytest.approx(50))
    assert sentence([energy]) == "energy per 1,000 tokens 1,000 J"


def write(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


PACKAGES = {
    "powercap/intel-rapl:0/name": "package-0\n",
    "powercap/intel-rapl:0/energy_uj": "1000000\n",
    "powercap/intel-rapl:0/max_energy_range_uj": "9000000\n",
    "powercap/intel-rapl:0:0/name": "core\n",  # a part of package-0
    "powercap/intel-rapl:0:0/energy_uj": "1000000\n",
    "powercap/intel-rapl-mmio:0/name": "package-0\n",  # the same one
    "powercap/intel-rapl-mmio:0/energy_uj": "1000000\n",
    "powercap/intel-rapl:1/name": "package-1\n",
    "powercap/intel-rapl:1/energy_uj": "8000000\n",
    "powercap/intel-rapl:1/max_energy_range_uj": "9000000\n",
    "powercap/intel-rapl:2/name": "psys\n",  # the board, packages and all
    "powercap/intel-rapl:2/energy_uj": "5\n",
}


def test_packages_are_counted_once_and_over_the_end_of_a_counter(tmp_path: Path) -> None:
    system = write(tmp_path, PACKAGES)
    meter = Meter(system)
    write(
        system,
        {"powercap/intel-rapl:0/energy_uj": "3500000\n", "powercap/intel-rapl:1/energy_uj": "500000\n"},
    )
    assert meter.joules() == pytest.approx(2.5 + 1.5)  # package-1: from 8 to 9, and from 0 to 0.5
    (system / "powercap/intel-rapl:1/max_energy_range_uj").unlink()
    assert meter.joules() is None
    assert energies(system)["core"] == 1.0


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    assert Meter(tmp_path).joules() is None
    assert temperatures(tmp_path) == energies(tmp_path) == {}
    named = {name: text for name, text in PACKAGES.items() if name.endswith("name")}
    assert Meter(write(tmp_path, named)).joules() is None  # there, and not ours to read


def test_temperatures_come_from_hwmon_where_there_are_no_zones(tmp_path: Path) -> None:
    chip = {"hwmon/hwmon0/name": "k10temp\n", "hwmon/hwmon0/temp1_input": "61500\n"}
    assert temperatures(write(tmp_path, chip)) == {"k10temp temp1": 61.5}
    write(tmp_path, {"thermal/thermal_zone0/temp": "48500\n", "thermal/thermal_zone0/type": "cpu\n"})
    assert temperatures(tmp_path) == {"cpu": 48.5}
