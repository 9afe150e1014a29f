"""The command line of serve: each command loads its own side only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = """
import sys
from serve.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sys.modules, file=sys.stderr)
"""
SERVERS = {"uvloop", "httptools", "pydantic", "uvicorn", "starlette", "numpy", "onnxruntime", "yaml"}


def loaded(*arguments: str) -> set[str]:
    """What a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("command", ["", "arm", "router", "up", "rollout", "compile"])
def test_help_is_light(command: str) -> None:
    assert not loaded(*command.split(), "--help") & SERVERS


@pytest.mark.parametrize(
    ("arguments", "own", "other"),
    [
        (("arm", "nowhere", "--port=0"), "serve.arm.server", "serve.router"),
        (
            ("router", "nowhere.yaml", "--state={}", "--port=0", "--admin-port=0"),
            "serve.router.run",
            "serve.arm",
        ),
        (("compile", "nowhere.yaml", "--to", "nginx"), "serve.compile.nginx", "serve.arm"),
        (
            ("rollout", "status", "--admin-token-file", "{}/none"),
            "serve.rollout.remote",
            "serve.router.policy",
        ),
    ],
)
def test_a_command_loads_its_own_side_only(
    arguments: tuple[str, ...], own: str, other: str, tmp_path: Path
) -> None:
    found = loaded(*(argument.format(tmp_path) for argument in arguments))
    assert own in found
    assert not [name for name in found if f"{name}.".startswith(f"{other}.")]
