"""Arms and router started together, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from openai import OpenAI

from engines.errors import UserError
from engines.ports import free_port
from serve.router.assignment import Assigner
from serve.router.reading import parse_policy
from serve.up import arm_commands, arms
from tests.conftest import ROOT
from tests.live_arm import built
from tests.live_up import PATIENCE_S, running_up, wait_for


def text(artifact: Path, port: int) -> str:
    return (
        "experiment: e\nbaseline: a\narms:\n"
        f'  a: {{url: "http://127.0.0.1:{port}", artifact: "{artifact}"}}\n'
        "split: {mode: random, weights: {a: 100}}\nlimits: {connections: 100}\n"
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


def children(pid: int) -> dict[int, str]:
    """Command lines of a process's children, by process id."""
    tasks = Path(f"/proc/{pid}/task").iterdir()  # each thread has children of its own
    pids = [child for task in tasks for child in (task / "children").read_text().split()]
    return {int(child): Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ") for child in pids}


def test_real_arms_behind_the_router(micro_checkpoint: Path, tmp_path: Path) -> None:
    """An openai client streams, users stay with their arm, a killed arm comes back, all end together."""
    artifact = built(micro_checkpoint, tmp_path / "micro" / "int4")
    ports = {name: free_port() for name in ("int4", "fp16")}
    arms = "".join(
        f'  {name}: {{url: "http://127.0.0.1:{port}", artifact: "{artifact}"}}\n'
        for name, port in ports.items()
    )
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"experiment: e\nbaseline: fp16\narms:\n{arms}fallback: [fp16]\n"
        'split: {key: "header:x-user-id", weights: {int4: 50, fp16: 50}}\n'
        "health: {interval_s: 0.2}\nlimits: {connections: 100}\n"
    )
    assign, port = Assigner(parse_policy(policy.read_text())), free_port()
    users = [f"user-{number}" for number in range(8)]
    assigned = {user: assign({b"x-user-id": user.encode()}, "").arm for user in users}
    assert set(assigned.values()) == set(ports)
    with (
        running_up(tmp_path, port, str(policy)) as (process, said),
        OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        wait_for(said, "ready: router")

        def ask(user: str) -> str:
            """The arm that answered a stream, which has words and a usage."""
            answer = client.chat.completions.with_raw_response.create(
                model="micro",
                messages=[{"role": "user", "content": "Code of Zafolo?"}],
                max_tokens=8,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers={"x-user-id": user},
            )
            chunks = list(answer.parse())
            assert any(chunk.choices and chunk.choices[0].delta.content for chunk in chunks)
            assert chunks[-1].usage
            return str(answer.headers["x-ab-arm"])

        assert [ask(user) for user in users * 2] == [assigned[user] for user in users * 2]
        started = children(process.pid)
        (victim,) = (pid for pid, line in started.items() if f"--port {ports['int4']}" in line)
        os.kill(victim, signal.SIGKILL)
        assert "is started again" in wait_for(said, "arm int4 ended")
        assert {ask(user) for user in users} == {"fp16"}, "the fallback answers meanwhile"
        wait_for(said, "[int4] ready:")
        candidate = next(user for user in users if assigned[user] == "int4")
        while ask(candidate) != "int4":
            time.sleep(0.1)
        pids = [*children(process.pid), process.pid]
        assert len(pids) == 4
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
        assert not [pid for pid in pids[:-1] if Path(f"/proc/{pid}").exists()]
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["http.response.status_code"] for line in lines} == {200}
    assert all(line["gen_ai.usage.output_tokens"] for line in lines)
    assert {line.get("ab.fallback") for line in lines} <= {
        None,
        "connect",
        "unhealthy",
        "reset",
        "breaker_open",
    }
