"""Arms and router started together, as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from engines.errors import UserError
from serve.router.reading import parse_policy
from serve.up import arm_commands, arms
from tests.proxies import free_port

ROOT = Path(__file__).resolve().parent.parent


def text(artifact: Path, port: int) -> str:
    return (
        "experiment: e\nbaseline: a\narms:\n"
        f'  a: {{url: "http://127.0.0.1:{port}", artifact: "{artifact}"}}\n'
        "split: {mode: random, weights: {a: 100}}\n"
    )


def test_arms_start_at_their_urls(tmp_path: Path) -> None:
    commands = arm_commands(parse_policy(text(tmp_path, 8123)))
    assert commands["a"][2:] == ["serve", "arm", str(tmp_path), "--host", "127.0.0.1", "--port", "8123"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("127.0.0.1", "10.0.0.1", "on this machine"),
        ('url: "http://127.0.0.1:8123", ', "", "on this machine"),
        ('artifact: "', 'artifact: "/no', "no artifact"),
        (', artifact: "', ', digest: "x", max_requests: 1} #', "no arm has an artifact"),
    ],
)
def test_what_cannot_be_started_is_refused(old: str, new: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        arm_commands(parse_policy(text(tmp_path, 8123).replace(old, new)))


def test_an_arm_that_ends_is_started_again(tmp_path: Path) -> None:
    """Each life leaves a file and ends; the second is the proof."""
    script = (
        "import os, sys, time, pathlib; n = len(list(pathlib.Path(sys.argv[1]).iterdir()))\n"
        "print('ready: arm', file=sys.stderr, flush=True)\n"
        "pathlib.Path(sys.argv[1], str(n)).touch()\nn and time.sleep(60)\n"
    )
    lives = tmp_path / "lives"
    lives.mkdir()
    with arms({"a": [sys.executable, "-c", script, str(lives)]}, threading.Event()):
        while not (lives / "1").exists():
            time.sleep(0.05)


def test_an_arm_that_never_is_ready_is_told() -> None:
    commands = {"a": [sys.executable, "-c", "raise SystemExit('no')"]}
    with pytest.raises(UserError, match="arm a ended before"), arms(commands, threading.Event()):
        pass


def test_the_router_starts_behind_its_policy(tmp_path: Path) -> None:
    """As a process: ready line, an answer through it, SIGHUP, SIGTERM."""
    arm_port, port = free_port(), free_port()
    policy = tmp_path / "policy.yaml"
    policy.write_text(text(tmp_path, arm_port).replace(f', artifact: "{tmp_path}"', ""))
    arm = subprocess.Popen([sys.executable, "-m", "bench.router.arm", str(arm_port)], cwd=ROOT)
    command = [sys.executable, "-m", "serve", "router", str(policy), f"--port={port}", "--admin-port=0"]
    router = subprocess.Popen(
        [*command, f"--state={tmp_path}/state", "--log-stdout"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert router.stderr
        assert router.stderr.readline().startswith(f"ready: router at http://127.0.0.1:{port}, admin at ")
        while True:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60) as answer:
                if answer.status == 200:
                    break
        policy.write_text(policy.read_text() + "retries: 0\n")
        os.kill(router.pid, signal.SIGHUP)
        assert router.stderr.readline() == "policy version 2 is in force\n"
        policy.write_text("broken")
        os.kill(router.pid, signal.SIGHUP)
        assert "version 2 stays in force" in router.stderr.readline()
        assert oct((tmp_path / "state" / "admin-token").stat().st_mode & 0o777) == "0o600"
        router.terminate()
        assert router.wait(60) == 0
    finally:
        for process in (router, arm):
            process.kill()
            process.communicate()
