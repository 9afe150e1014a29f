"""The benchmarks still run; what they measure is not looked at."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT


def test_every_hot_piece_runs() -> None:
    command = [sys.executable, "-m", "pytest", "tests/benchmarks/hot_pieces.py", "--benchmark-disable"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "15 passed" in done.stdout
