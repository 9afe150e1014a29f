"""What a process may still take, as its control groups tell it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.memory import available_memory, left
from tests.conftest import ROOT


def group(folder: Path, limit: str, used: int, files: int, *, old: bool = False) -> None:
    """One of cgroup v2, or of v1."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(f"{limit}\n")
    (folder / ("memory.usage_in_bytes" if old else "memory.current")).write_text(f"{used}\n")
    name = "total_inactive_file" if old else "inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{name} {files}\n")


def test_a_container_s_group_is_at_the_root(tmp_path: Path) -> None:
    """Files that were read, weights above all, are no reason to refuse."""
    group(tmp_path, "1000", 900, 600)
    assert list(left("0::/\n", tmp_path)) == [700]


def test_every_group_around_a_process_counts(tmp_path: Path) -> None:
    group(tmp_path / "user" / "session", "max", 100, 0)
    group(tmp_path / "user", "500", 100, 0)
    assert list(left("0::/user/session\n", tmp_path)) == [400]


@pytest.mark.parametrize("path", ["/docker/abc", "/"])
def test_groups_of_the_first_version(tmp_path: Path, path: str) -> None:
    """In a container its own group is the root, by whatever path it goes outside."""
    group(tmp_path / "memory", "1000", 300, 100, old=True)
    assert list(left(f"5:cpu:/other\n4:memory:{path}\n0::/\n", tmp_path)) == [800]


@pytest.mark.parametrize("groups", ["", "0::/\n", "4:memory:/none\n", "0::/../..\n"])
def test_nothing_is_known_of_groups_that_are_not_there(tmp_path: Path, groups: str) -> None:
    assert list(left(groups, tmp_path / "none")) == []


def limited(size: int, *words: object) -> subprocess.CompletedProcess[str]:
    """Python with so many bytes of addresses, as `ulimit -v` limits them."""
    script = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({size}, {size}))\n{words[0]}"
    line = [sys.executable, "-c", script, *map(str, words[1:])]
    known = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=ROOT, env=known, capture_output=True, text=True, timeout=60)


def test_a_limit_of_addresses_counts() -> None:
    assert available_memory() > 100_000_000
    done = limited(100_000_000, "from engines.memory import available_memory\nprint(available_memory())")
    assert 0 <= int(done.stdout) < 100_000_000


@pytest.mark.parametrize(
    "line",
    [
        ["build", "all", "--out"],
        ["quantize", "bench/micro/checkpoint", "--method", "rtn", "--out"],
        ["engines", "run", "bench/micro/checkpoint", "--prompt", "?"],
    ],
)
def test_too_few_addresses_for_torch_are_told_before_it_loads(line: list[str], tmp_path: Path) -> None:
    """OpenBLAS would ask for ever (scipy's), C++ would abort, torch's own modules would fail half-way."""
    words = [*line, str(tmp_path / "out")] if line[-1] == "--out" else line
    run = "import runpy, sys\nrunpy.run_module(sys.argv.pop(1), run_name='__main__')"
    done = limited(800_000_000, run, *words)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the address space is limited to 800 MB (ulimit -v), expected at least 2 GB: raise it; a "
        "container's limit counts what is really used"
    ]
    assert list(tmp_path.iterdir()) == []
