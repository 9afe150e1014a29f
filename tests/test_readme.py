"""The README's file tree is true."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

PACKAGES = ("build", "serve", "bench", "quantize", "engines")


def tree() -> dict[str, str]:
    """The part of the README's tree that describes each package."""
    block = (ROOT / "README.md").read_text().split("```\nbuild/ ", 1)[1].split("```", 1)[0]
    parts = re.split(r"^(\w+)/", "build/ " + block, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("package", PACKAGES)
def test_tree_names_every_module_and_no_other(package: str) -> None:
    modules = {path.name for path in (ROOT / package).rglob("*.py")} - {"__init__.py"}
    named = set(re.findall(r"\w+\.py", tree()[package]))
    assert named == modules
