"""Dockerfile and compose.yaml: linted, and run as they are by what tests/images.py has for an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from tests.conftest import ROOT
from tests.images import Dockerfile, Image, Mount, enter, require_namespaces
from tests.live_arm import built

PATIENCE_S = 300  # on a machine that has other work
PROGRAMS = Path(sys.executable).parent  # where packages put theirs
TOKEN = "sesame"


def program(name: str, *words: str) -> str:
    """What a program from a package prints."""
    found = shutil.which(name, path=f"{PROGRAMS}:{os.environ['PATH']}")
    assert found, f"{name} is not installed"
    done = subprocess.run([found, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr, "a warning"
    return done.stdout


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """compose.yaml as docker compose reads it, every profile included."""
    return dict(json.loads(program("docker-compose", "--profile", "*", "config", "--format", "json")))


def test_hadolint_has_nothing_to_say() -> None:
    assert not program("hadolint", "--failure-threshold", "style", "Dockerfile")


def test_what_a_gpu_needs_is_what_pyproject_says() -> None:
    """The stages for GPUs name packages beside the lock; those of the extra `gpu` with its versions."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    named = {
        device: re.split(r"serve\.txt", re.search(rf"AS packages-{device}\n(.*\n)", text)[1])[1].split()  # type: ignore[index]
        for device in ("cuda", "tensorrt")
    }
    pyproject = (ROOT / "pyproject.toml").read_text()
    for words in named.values():
        assert words
        assert all(re.search(rf'"{re.escape(word)}[=>"]', pyproject) for word in words)


def test_nothing_of_compose_is_privileged(composed: dict[str, Any]) -> None:
    assert len(composed["services"]) == 6
    for name, service in composed["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "build" in service or re.search(r":v?\d", service["image"]), f"{name} has no version"
        for mount in service.get("volumes", []):
            assert mount["type"] == "volume" or Path(mount["source"]).exists(), mount
    # Only the router's traffic is for other machines.
    open_ports = [
        port["published"]
        for service in composed["services"].values()
        for port in service.get("ports", [])
        if port.get("host_ip") != "127.0.0.1"
    ]
    assert open_ports == ["8080"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Layers and volumes, which are large: they do not outlive the tests."""
    require_namespaces()
    folder = tmp_path_factory.mktemp("containers")
    yield folder
    shutil.rmtree(folder)


def test_the_pipeline_runs_unprivileged(composed: dict[str, Any], folder: Path) -> None:
    """Its packages are this environment, of which requirements/build.txt is a part."""
    empty = folder / "packages"
    (empty / "opt" / "venv").mkdir(parents=True)
    given = {"packages-pipeline": Image(layers=(empty,))}
    image = Dockerfile(ROOT / "Dockerfile", folder / "pipeline", {}, given).build("pipeline")
    assert list(image.command) == composed["services"]["pipeline"]["command"]
    (folder / "built").mkdir()
    os.chown(folder / "built", 10001, 10001)
    mounts = [Mount(Path(sys.prefix), "/opt/venv"), Mount(folder / "built", "/artifacts", read_only=False)]
    command = [word.replace("all", "plan") for word in image.command] + ["--json"]
    line = enter(image, command, folder / "plan", mounts=mounts)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gptq-int4-onnx" in done.stdout


def test_all_of_compose_on_loopback(composed: dict[str, Any], folder: Path, micro_checkpoint: Path) -> None:
    """Two arms, the router and Prometheus, by their own command lines, each at an address of its own."""
    stack = Stack(composed, folder)
    model = stack.volume("artifacts") / "qwen3-vl-micro"
    model.mkdir()
    shutil.copytree(built(micro_checkpoint, model / "onnx-fp16"), model / "gptq-int4-onnx")
    with ExitStack() as running:
        for name in ("arm-fp16", "arm-int4", "router"):
            running.enter_context(stack.service(name))
        router = stack.addresses["router"]
        client = OpenAI(base_url=f"http://{router}:8080/v1", api_key="none", max_retries=0)
        seen = set()
        for user in range(40):
            answer = client.chat.completions.with_raw_response.create(
                model="qwen3-vl-micro",
                max_tokens=4,
                messages=[{"role": "user", "content": "Code of Zafolo?"}],
                extra_headers={"x-user-id": f"user-{user}"},
            )
            seen.add(answer.headers["x-ab-arm"])
        assert seen == {"fp16", "int4"}
        assert httpx2.get(f"http://{router}:8090/metrics").status_code == 401
        lines = (stack.volume("state") / "requests.jsonl").read_text().splitlines()
        assert {json.loads(line)["ab.arm"] for line in lines} == seen
        if not shutil.which("prometheus") and not os.environ.get("CI"):
            pytest.skip("all but Prometheus, which is not installed; see .ci/run")
        running.enter_context(stack.service("prometheus"))
        stack.until(lambda: targets(stack) == {"router": {"up"}, "arm": {"up"}})
        stack.until(lambda: value(stack, "sum(router_requests_total)") == 40)
        rules = ask(stack, "rules")["groups"]
        assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
        assert len(rules) == 2


def ask(stack: Stack, path: str) -> Any:
    return httpx2.get(f"http://{stack.addresses['prometheus']}:9090/api/v1/{path}").json()["data"]


def targets(stack: Stack) -> dict[str, set[str]]:
    """Health of the targets by job."""
    found: dict[str, set[str]] = {}
    for target in ask(stack, "targets?state=active")["activeTargets"]:
        found.setdefault(target["labels"]["job"], set()).add(target["health"])
    return found


def value(stack: Stack, query: str) -> float:
    result = ask(stack, f"query?query={query}")["result"]
    return float(result[0]["value"][1]) if result else 0.0


class Stack:
    """Services of compose.yaml as containers that share this machine's network: each has its own address."""

    def __init__(self, composed: Mapping[str, Any], folder: Path) -> None:
        self._services, self._folder = composed["services"], folder
        images = Dockerfile(ROOT / "Dockerfile", folder / "images", {"DEVICE": "cpu"}, {})
        self._images = {"serve": images.build("serve")}
        # Of 127.0.0.0/8, so that ports stay as they are and nobody else's are taken.
        net = os.getpid() % 60_000
        names = list(self._services)
        self.addresses = {
            name: f"127.{net // 250 + 1}.{net % 250}.{number + 2}" for number, name in enumerate(names)
        }
        self._hosts = "".join(f"{address} {name}\n" for name, address in self.addresses.items())
        (folder / "token").write_text(TOKEN)

    def volume(self, name: str) -> Path:
        """A named volume; it belongs to whoever its image says."""
        path = self._folder / "volumes" / name
        if not path.exists():
            path.mkdir(parents=True)
            owner = 65534 if name == "prometheus" else 10001
            os.chown(path, owner, owner)
        return path

    @contextmanager
    def service(self, name: str) -> Iterator[None]:
        """Running and healthy; told to stop, it ends by itself."""
        service = self._services[name]
        scratch = self._folder / name
        scratch.mkdir()
        image, command = self._image(service), self._words(name, service["command"])
        mounts = list(self._mounts(service))
        if name == "prometheus":
            here = shutil.which("prometheus")
            assert here
            mounts.append(Mount(Path(here), "/usr/local/bin/prometheus"))
            command = ["prometheus", *command]
        line = enter(image, command, scratch / "main", mounts=mounts, hosts=self._hosts)
        with (scratch / "log").open("w") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log)
            try:
                check = self._words(name, service.get("healthcheck", {}).get("test", ["CMD", "true"])[1:])
                probe = enter(image, check, scratch / "probe", mounts=mounts, hosts=self._hosts)
                self.until(lambda: _answers(process, probe, scratch / "log"))
                yield
                process.send_signal(signal.SIGTERM)
                assert process.wait(PATIENCE_S) == 0, (scratch / "log").read_text()
            finally:
                process.kill()
                process.wait()

    def until(self, holds: Any) -> None:
        """What does not listen yet does not hold yet."""
        end = time.monotonic() + PATIENCE_S
        while True:
            with suppress(httpx2.TransportError):
                if holds():
                    return
            assert time.monotonic() < end, "it took too long"
            time.sleep(0.5)

    def _image(self, service: Mapping[str, Any]) -> Image:
        if "build" in service:
            return self._images[service["build"]["target"]]
        return replace(Image(), user="65534:65534")

    def _words(self, name: str, words: Sequence[str]) -> list[str]:
        return [re.sub(r"0\.0\.0\.0|127\.0\.0\.1", self.addresses[name], word) for word in words]

    def _mounts(self, service: Mapping[str, Any]) -> Iterator[Mount]:
        for mount in service.get("volumes", []):
            source = self.volume(mount["source"]) if mount["type"] == "volume" else Path(mount["source"])
            yield Mount(source, mount["target"], mount.get("read_only", False))
        for secret in service.get("secrets", []):
            yield Mount(self._folder / "token", f"/run/secrets/{secret['source']}")


def _answers(process: subprocess.Popen[bytes], probe: Sequence[str], log: Path) -> bool:
    assert process.poll() is None, log.read_text()
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0
