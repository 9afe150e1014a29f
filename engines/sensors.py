"""Temperature and energy of this machine's processors, as Linux tells them; a container often may not ask."""

from __future__ import annotations

from pathlib import Path

SYSTEM = Path("/sys/class")


def temperatures(system: Path = SYSTEM) -> dict[str, float]:
    """Degrees Celsius by thermal zone; where there is none, by sensor of hwmon."""
    found = {}
    for zone in sorted(system.glob("thermal/thermal_zone*")):
        if (value := _number(zone / "temp")) is not None:
            found[_line(zone / "type") or zone.name] = value / 1000
    for sensor in [] if found else sorted(system.glob("hwmon/hwmon*/temp*_input")):
        if (value := _number(sensor)) is not None:
            chip = _line(sensor.parent / "name") or sensor.parent.name
            found[f"{chip} {sensor.name.removesuffix('_input')}"] = value / 1000
    return found


def energies(system: Path = SYSTEM) -> dict[str, float]:
    """Joules counted so far by power domain (RAPL); root alone may read them on most machines."""
    found = {}
    for domain in sorted(system.glob("powercap/*:*")):
        if (value := _number(domain / "energy_uj")) is not None:
            found[_line(domain / "name") or domain.name] = value / 1e6
    return found


class Meter:
    """Joules that the processor packages took since it was made, cores and caches included, memory not."""

    def __init__(self, system: Path = SYSTEM) -> None:
        # By name: intel-rapl and intel-rapl-mmio both tell of package-0.
        domains = {_line(path / "name"): path for path in sorted(system.glob("powercap/*:*"))}
        packages = [path for name, path in domains.items() if (name or "").startswith("package")]
        self._began = {path: _number(path / "energy_uj") for path in packages}

    def joules(self) -> float | None:
        """None where they cannot be read. A counter may have gone over its end once."""
        taken = 0.0
        for path, began in self._began.items():
            ended, size = _number(path / "energy_uj"), _number(path / "max_energy_range_uj")
            if began is None or ended is None or (ended < began and size is None):
                return None
            taken += ended - began + (size or 0.0) * (ended < began)
        return taken / 1e6 if self._began else None


def _line(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _number(path: Path) -> float | None:
    line = _line(path)
    try:
        return float(line) if line else None
    except ValueError:
        return None
