"""Two arms behind nginx, watched by Prometheus and Grafana, on one machine: started, tried, taken down.

All of it listens on loopback, at ports that are free, and keeps its files in one folder.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from signal import SIGHUP
from typing import Any

import yaml

from engines.errors import UserError
from engines.ports import free_ports
from serve.compile import compile_policy
from serve.router.reading import parse_policy
from serve.up import started, stop_on_signals

MONITORING = Path(__file__).resolve().parent / "monitoring"
PORTS = ("candidate", "baseline", "router", "admin", "nginx", "prometheus", "grafana")
USERS = [f"user-{number}" for number in range(60)]
WINDOW = "30s"  # of the dashboard's rates
QUIET = ("router_fallbacks_total", "router_errors_total")  # without a series until something fails
ROUNDS = 60
PATIENCE_S = 300.0
STOP_S = 40.0  # arms and router finish their streams
POLICY = """\
experiment: stack
baseline: {baseline}
arms:
  {candidate}: {{url: "{at[candidate]}", artifact: {candidate_folder}}}
  {baseline}: {{url: "{at[baseline]}", artifact: {baseline_folder}}}
split: {{key: "header:x-user-id", weights: {{{candidate}: 50, {baseline}: 50}}}}
rollout: {{arm: {candidate}}}
limits: {{connections: 1000}}
"""


def stack(options: argparse.Namespace) -> None:
    """Starts everything, asks through it, reads the dashboard, rolls back, and ends everything.

    Raises UserError where a program is missing or ends, and where what is seen is not what should be.
    """
    programs = {name: _program(name) for name in ("nginx", "prometheus")}
    stopping = threading.Event()
    stop_on_signals(stopping)

    def go_on() -> None:
        if stopping.is_set():
            raise UserError("stopped before it was through")

    def until(true: Callable[[], bool], what: str) -> None:
        """Raises UserError when that does not come true in time, or when told to stop."""
        end = time.monotonic() + PATIENCE_S
        while not true():
            go_on()
            time.sleep(0.1)
            if time.monotonic() > end:
                raise UserError(f"no {what} within {PATIENCE_S:.0f} s")

    with ExitStack() as running:
        folder = Path(options.out or running.enter_context(tempfile.TemporaryDirectory())).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)  # nginx's workers are another user
        at = {
            name: f"http://127.0.0.1:{port}" for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)
        }

        def start(name: str, command: Sequence[str], ready: str) -> int:
            log = folder / f"{name.replace(' ', '-')}.log"
            file = running.enter_context(log.open("wb"))
            process = running.enter_context(started(command, STOP_S, file.fileno()))

            def is_ready() -> bool:
                if process.poll() is not None:
                    raise UserError(f"{name} ended: {log.read_text()[-300:].strip()}")
                return _answers(ready)

            until(is_ready, f"{name} at {ready}")
            print(f"{name}: {ready}", flush=True)
            return process.pid

        policy = folder / "policy.yaml"
        policy.write_text(_policy(options.candidate, options.baseline, at))
        start("arms and router", _up(policy, at, folder / "state"), f"{at['router']}/ready")
        _compile(policy.read_text(), at["nginx"], folder)
        nginx = start("nginx", _nginx(programs["nginx"], folder), f"{at['nginx']}/health")
        (folder / "prometheus.yaml").write_text(_scrapes(at, folder / "state" / "admin-token"))
        start(
            "prometheus",
            _prometheus(programs["prometheus"], folder, at["prometheus"]),
            f"{at['prometheus']}/-/ready",
        )
        database = at["prometheus"]
        if shutil.which("grafana"):
            _provision(folder / "grafana", at["prometheus"])
            start("grafana", _grafana(folder / "grafana", at["grafana"]), f"{at['grafana']}/api/health")
            database = f"{at['grafana']}/api/datasources/proxy/uid/prometheus"
        until(lambda: len(_values(database, "up == 1")) == 3, "a scrape of both arms and the router")

        for _ in range(ROUNDS):  # the load, while the dashboard is read
            go_on()
            arms = _arms_of_users(at["nginx"])
            if _arms_of_users(at["router"]) != arms:
                raise UserError("nginx and the router give a user different arms: expected the same")
            if not (empty := _without_data(database)):
                break
        else:
            raise UserError(f"no data for these queries of the dashboard: {'; '.join(empty)}")
        print(f"load: the same arms from nginx and the router: {_told(arms)}")
        print(
            f"dashboard: {len(expressions())} queries have data but for {' and '.join(QUIET)}: nothing failed"
        )

        token = (folder / "state" / "admin-token").read_text().strip()
        _ask(f"{at['admin']}/rollout/rollback", b"", Authorization=f"Bearer {token}")
        in_force = _ask(f"{at['admin']}/policy", Authorization=f"Bearer {token}")
        _compile(in_force, at["nginx"], folder)
        os.kill(nginx, SIGHUP)
        until(
            lambda: set(_arms_of_users(at["nginx"]).values()) == {options.baseline.name},
            "answers of the baseline alone",
        )
        print(f"rollback: compiled anew, nginx reloaded: {_told(_arms_of_users(at['nginx']))}")
    print("all ended")


def expressions() -> list[str]:
    """Every query of the dashboard."""
    panels = json.loads((MONITORING / "grafana.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def _without_data(database: str) -> list[str]:
    """The dashboard's queries with no finite value now, but for those of failures."""
    asked = [text for text in expressions() if not any(name in text for name in QUIET)]
    return [text for text in asked if not _values(database, text.replace("$__rate_interval", WINDOW))]


def _values(database: str, query: str) -> list[float]:
    """The finite values of a query, asked of Prometheus or of Grafana in front of it."""
    answer = json.loads(_ask(f"{database}/api/v1/query?{urllib.parse.urlencode({'query': query})}"))
    values = [float(found["value"][1]) for found in answer["data"]["result"]]
    return [value for value in values if math.isfinite(value)]


def _arms_of_users(base: str) -> dict[str, str]:
    """Who answered each user, by a header."""
    question = {
        "messages": [{"role": "user", "content": "Code of Zafolo?"}],
        "max_tokens": 4,
        "stream": True,  # tokens and the time between them are measured on streams that tell their usage
        "stream_options": {"include_usage": True},
    }

    def arm(user: str) -> str:
        headers = {"Content-Type": "application/json", "x-user-id": user}
        request = urllib.request.Request(
            f"{base}/v1/chat/completions", json.dumps(question).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return str(answer.headers["x-ab-arm"])

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(USERS, pool.map(arm, USERS), strict=True))


def _told(arms: dict[str, str]) -> str:
    return ", ".join(f"{arm} {count}" for arm, count in sorted(Counter(arms.values()).items()))


def _ask(url: str, body: bytes | None = None, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
        return str(answer.read().decode())


def _answers(url: str) -> bool:
    try:
        _ask(url)
    except OSError:
        return False
    return True


# What each program is told.


def _program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        raise UserError(f"no {name} on the PATH: apt-get install {name}")
    return found


def _policy(candidate: Path, baseline: Path, at: dict[str, str]) -> str:
    folders = {"candidate_folder": json.dumps(str(candidate.resolve()))}
    folders |= {"baseline_folder": json.dumps(str(baseline.resolve()))}
    return POLICY.format(candidate=candidate.name, baseline=baseline.name, at=at, **folders)


def _up(policy: Path, at: dict[str, str], state: Path) -> list[str]:
    ports = [f"--port={_port(at['router'])}", f"--admin-port={_port(at['admin'])}", f"--state={state}"]
    return [sys.executable, "-m", "serve", "up", str(policy), *ports]


def _compile(policy: str, listen: str, folder: Path) -> None:
    texts = compile_policy(parse_policy(policy), "nginx", listen.removeprefix("http://"))
    (folder / "nginx.conf").write_text(texts["nginx.conf"])


def _nginx(program: str, folder: Path) -> list[str]:
    files = ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    return [program, *files, "-g", f"daemon off; pid {folder / 'nginx.pid'};"]


def _scrapes(at: dict[str, str], token: Path) -> str:
    """Prometheus' configuration: what serve/monitoring/alerts.yaml says of the jobs."""

    def targets(*names: str) -> list[dict[str, Any]]:
        return [{"targets": [at[name].removeprefix("http://") for name in names]}]

    authorization = {"credentials_file": str(token)}
    return yaml.safe_dump(
        {
            "global": {"scrape_interval": "1s"},
            "rule_files": [str(MONITORING / "alerts.yaml")],
            "scrape_configs": [
                {"job_name": "arm", "static_configs": targets("candidate", "baseline")},
                {"job_name": "router", "static_configs": targets("admin"), "authorization": authorization},
            ],
        }
    )


def _prometheus(program: str, folder: Path, listen: str) -> list[str]:
    files = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'prometheus'}"]
    return [program, *files, f"--web.listen-address={listen.removeprefix('http://')}"]


def _provision(folder: Path, prometheus: str) -> None:
    """Grafana's data source and dashboard."""
    source = {
        "name": "prometheus",
        "uid": "prometheus",
        "type": "prometheus",
        "url": prometheus,
        "access": "proxy",
    }
    provider = {"name": "arms", "type": "file", "options": {"path": str(folder / "dashboards")}}
    for name, content in (("datasources", [source]), ("dashboards", [provider])):
        (folder / "provisioning" / name).mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump({"apiVersion": 1, "providers" if name == "dashboards" else name: content})
        (folder / "provisioning" / name / "stack.yaml").write_text(text)
    (folder / "dashboards").mkdir(exist_ok=True)
    shutil.copy(MONITORING / "grafana.json", folder / "dashboards")


def _grafana(folder: Path, listen: str) -> list[str]:
    settings = {
        "paths.data": folder,
        "paths.provisioning": folder / "provisioning",
        "server.http_port": _port(listen),
    }
    settings |= {
        "server.http_addr": "127.0.0.1",
        "auth.anonymous.enabled": "true",
        "auth.anonymous.org_role": "Admin",
    }
    told = [f"cfg:{name}={value}" for name, value in settings.items()]
    return [_program("grafana"), "server", "--homepath", "/usr/share/grafana", *told]


def _port(url: str) -> str:
    return url.rpartition(":")[2]
