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
def test_lock_is_written_again_as_it_is(name: str) -> None:
    assert LOCK["text"](LOCK["declared"]()[name]) == (REQUIREMENTS / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", ["serve", "build", "dev"])
def test_locked_versions_satisfy_the_declared_ranges(name: str) -> None:
    versions = locked(name)
    for line in LOCK["declared"]()[name]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), line


def test_tests_run_on_the_locked_versions() -> None:
    installed = {name: version(name).partition("+")[0] for name in locked("dev")}
    assert installed == locked("dev")


def test_what_a_gpu_needs_is_what_the_lock_and_pyproject_say() -> None:
    """gpu.txt is constrained by dev.txt, but for what only a GPU has."""
    lines = [line for line in (REQUIREMENTS / "gpu.txt").read_text().splitlines() if not line.startswith("#")]
    pyproject = (REQUIREMENTS.parent / "pyproject.toml").read_text()
    pinned = [line for line in lines if "==" in line]
    assert set(lines) - set(pinned) <= locked("dev").keys()
    assert {line.partition("==")[0] for line in pinned} == {
        "onnxruntime-gpu",
        "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    }
    assert f'"{pinned[1]}"' in pyproject


def test_serving_needs_neither_torch_nor_transformers() -> None:
    assert not {"torch", "transformers", "onnx", "scipy", "matplotlib"} & set(locked("serve"))
