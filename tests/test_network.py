"""At run time nobody is called who was not asked for: building and serving need loopback and no more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.endurance.mix import SHARES
from tests.conftest import ROOT

NAMESPACE = ("unshare", "--user", "--map-root-user", "--net")


def refused() -> str:
    """Why there is no network namespace to be had; nothing if there is."""
    try:
        done = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return done.stderr.strip()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("offline")


@pytest.fixture(scope="module")
def ran(folder: Path) -> dict[str, Any]:
    """A build, two arms and a router; without a network where that can be had."""
    around: Sequence[str] = () if refused() else NAMESPACE
    command = [*around, sys.executable, "-m", "tests.offline", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stderr)  # what the build said, where it failed
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_no_network_is_needed(ran: dict[str, Any]) -> None:
    if not ran["cut"]:
        pytest.skip(f"no network namespace: {refused()}")
    assert ran["built"] in (0, 3, 4), "reached its verdict"
    assert ran["heard"] == {kind: True for kind in SHARES if kind != "leaves"}


def test_nobody_elsewhere_is_called(ran: dict[str, Any], folder: Path) -> None:
    """Attempts count, those that fail in silence too; `serve rollout status` shows that they are seen."""
    recorded = (folder / "connections.txt").read_text().splitlines()
    assert any(line.startswith("socket.connect ('127.0.0.1'") for line in recorded)
    local = ("('127.0.0.1'", "('::1'", "'127.0.0.1'", "'localhost'", "None")
    others = [line for line in recorded if not line.partition(" ")[2].startswith(local)]
    assert others == []
