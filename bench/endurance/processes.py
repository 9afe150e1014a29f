"""What is put to the test: `serve up` with two arms, and each of its processes from birth to end (Linux)."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.router.servers import ROOT, started
from engines.ports import free_port

ARMS = ("candidate", "baseline")
STOP_S = 90.0  # streams finish, then router and arms end
POLICY = """\
experiment: endurance
baseline: baseline
arms:
  candidate: {{url: "http://127.0.0.1:{ports[0]}", artifact: {folders[0]}}}
  baseline: {{url: "http://127.0.0.1:{ports[1]}", artifact: {folders[1]}}}
split: {{key: "header:x-user-id", weights: {{candidate: {percent}, baseline: {rest}}}}}
fallback: [candidate, baseline]
rollout: {{arm: candidate, steps: [5, 25, 50], dwell_s: 86400}}
limits: {{connections: 1000}}
"""


@dataclass
class Life:
    """A process that was seen: when, with what resident memory, how many open files; CPU seconds so far."""

    name: str
    pid: int
    times: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    cpu_s: float = 0.0


@dataclass
class Site:
    """Two arms behind a router. `lives` grow while `watching`."""

    folder: Path
    artifacts: Sequence[Path]
    port: int
    admin_port: int
    arm_ports: Sequence[int]
    up: int = 0  # its process id
    lives: dict[int, Life] = field(default_factory=dict)

    def policy(self, percent: int) -> str:
        """With the candidate's share."""
        folders = [json.dumps(str(path.resolve())) for path in self.artifacts]
        return POLICY.format(ports=self.arm_ports, folders=folders, percent=percent, rest=100 - percent)

    def log(self) -> list[dict[str, object]]:
        """Every line of the router's log, rotated files first."""
        files = sorted(self.folder.glob("log*"), reverse=True)
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def admin(self, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        """Status and text of an answer by the admin port."""
        token = (self.folder / "state" / "admin-token").read_text().strip()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.admin_port}{path}",
            body if method != "GET" else None,
            {"authorization": f"Bearer {token}"},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def processes(self) -> dict[str, int]:
        """Process ids of the router and the arms, as many as run."""
        marks = {b"%d" % port: arm for arm, port in zip(ARMS, self.arm_ports, strict=True)}
        marks[b"router"] = "router"
        found = {}
        for pid in _children(self.up):
            for word in _read(f"/proc/{pid}/cmdline").split(b"\0"):
                if word in marks:
                    found[marks[word]] = pid
        return found

    def breaker(self, arm: str) -> str:
        """The state of an arm's breaker; nothing where its health check fails."""
        seen = json.loads(self.admin("GET", "/status")[1])["arms"][arm]
        return str(seen["breaker"]) if seen["healthy"] else ""

    def is_ready(self, arm: str) -> bool:
        """Whether an arm takes requests, and the router would give it one."""
        if self.breaker(arm) not in ("closed", "half-open"):
            return False
        url = f"http://127.0.0.1:{self.arm_ports[ARMS.index(arm)]}/ready"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return True
        except OSError:
            return False

    def look(self) -> None:
        """Once at every process."""
        for name, pid in self.processes().items():
            try:
                pages = int(_read(f"/proc/{pid}/statm").split()[1])
                ticks = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[11:13]
                files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
            except (OSError, IndexError):
                continue  # it has just ended
            if not pages:
                continue  # it is just ending
            life = self.lives.setdefault(pid, Life(name, pid))
            life.times.append(time.monotonic())
            life.resident.append(pages * os.sysconf("SC_PAGE_SIZE"))
            life.files.append(files)
            life.cpu_s = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(artifacts: Sequence[Path], folder: Path) -> Iterator[Site]:
    """Arms and router that are ready; told to end with the block. UserError where they do not start."""
    folder.mkdir(parents=True, exist_ok=True)
    site = Site(folder, artifacts, free_port(), free_port(), (free_port(), free_port()))
    policy = folder / "policy.yaml"
    policy.write_text(site.policy(50))
    command = [sys.executable, "-m", "serve", "up", str(policy), f"--port={site.port}"]
    where = [f"--admin-port={site.admin_port}", f"--state={folder / 'state'}", f"--log={folder / 'log'}"]
    with started([*command, *where], ROOT, folder / "output.txt", site.port, STOP_S) as it:
        assert it.process
        site.up = it.process.pid
        yield site


@contextmanager
def watching(site: Site, every_s: float) -> Iterator[None]:
    """Looks again and again while the block runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(every_s):
            site.look()

    thread = threading.Thread(target=watch, name="watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _children(pid: int) -> list[int]:
    """Of all threads of a process; none once it has ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
    return [int(child) for task in tasks for child in _read(f"{task}/children").split()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
