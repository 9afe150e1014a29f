"""The lock holds exactly what pyproject.toml asks for, and it is what the tests run on."""

from __future__ import annotations

import runpy
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
LOCK = runpy.run_path(str(REQUIREMENTS / "lock.py"))


def locked(name: str) -> dict[str, str]:
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("name", ["serve", "build", "dev"])
def test_lock_is_the_closure_of_what_is_declared(name: str) -> None:
    assert locked(name) == LOCK["closure"](LOCK["declared"]()[name])


@pytest.mark.parametrize("name", ["serve", "build", "dev"])
def test_locked_versions_satisfy_the_declared_ranges(name: str) -> None:
    versions = locked(name)
    for line in LOCK["declared"]()[name]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line


def test_tests_run_on_the_locked_versions() -> None:
    installed = {name: version(name).partition("+")[0] for name in locked("dev")}
    assert installed == locked("dev")


def test_serving_needs_neither_torch_nor_transformers() -> None:
    assert not {"torch", "transformers", "onnx", "scipy", "matplotlib"} & set(locked("serve"))
