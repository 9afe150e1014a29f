"""A policy on Ray Serve: two nodes on this machine, an arm on each, and the router's assignments."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
import yaml

from engines.artifact import Manifest
from engines.ports import free_port
from serve.__main__ import main
from serve.router.assignment import Assigner
from serve.router.reading import parse_policy
from tests.live_arm import built
from tests.ray_cluster import two_nodes

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray itself warns of much
USERS = [f"u{number}" for number in range(30)]
PATIENT = "timeouts: {connect_s: 60}"  # on a busy machine


def text(folder: Path, weight: int, more: str = "") -> str:
    return (
        "experiment: e\nbaseline: b\nfallback: [b]\narms:\n"
        f"  a: {{artifact: {folder}/a, {PATIENT}}}\n  b: {{artifact: {folder}/b, {PATIENT}}}\n"
        '  gone: {url: "http://127.0.0.1:1"}\n'
        f'split: {{key: "header:x-user-id", weights: {{a: {weight}, b: {100 - weight}}}}}\n'
        "groups: [{header: x-team, values: [lost], arm: gone}]\n" + more
    )


def expected(folder: Path, weight: int) -> dict[str, str]:
    """The router's arm for each user."""
    assign = Assigner(parse_policy(text(folder, weight)))
    return {user: assign({b"x-user-id": user.encode()}, "127.0.0.1").arm for user in USERS}


def compiled(folder: Path, policy: str) -> Any:
    """What `serve deploy` reads, checked by Ray's own schema."""
    from ray.serve.schema import ServeDeploySchema

    (folder / "policy.yaml").write_text(policy)
    assert main(["compile", str(folder / "policy.yaml"), "--to", "ray", "-o", str(folder)]) == 0
    return ServeDeploySchema.model_validate(yaml.safe_load((folder / "serve.yaml").read_text()))


@pytest.fixture(scope="module")
def folder(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ray")
    for name in "ab":
        built(micro_checkpoint, folder / name)
    return folder


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """Of the ingress of a cluster of two nodes with one CPU each: neither has room for both arms."""
    from ray import serve

    port = free_port()
    with two_nodes() as (cluster, _), patch("ray.serve._private.api.HTTP_PROXY_TIMEOUT", 300):
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        try:
            serve.start(proxy_location="HeadOnly", http_options={"port": port})
            deploy(folder, 30, port)
            yield port
        finally:
            ray.shutdown()


def deploy(folder: Path, weight: int, port: int) -> None:
    """As `serve deploy` does, and until those who have another arm now get it."""
    from ray import serve
    from ray.serve.context import _get_global_client

    _get_global_client().deploy_apps(compiled(folder, text(folder, weight)))
    arms, until = expected(folder, weight), time.monotonic() + 300
    user = next(user for user, arm in arms.items() if arm == "a")
    if weight > 30:
        user = next(user for user, arm in expected(folder, 30).items() if arm != arms[user])
    while time.monotonic() < until:
        with suppress(urllib.error.HTTPError), ask(port, x_user_id=user) as answer:
            if answer.headers["x-ab-arm"] == arms[user]:
                return
        time.sleep(0.1)
    pytest.fail(str(serve.status()))


def ask(port: int, path: str = "/ready", body: object = None, **headers: str) -> HTTPResponse:
    data = None if body is None else json.dumps(body).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    fields["content-type"] = "application/json"
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, fields)
    return urllib.request.urlopen(request, timeout=120)


def arm_processes() -> dict[int, int]:
    """Arms below this process, each with the node it is on: the parent of Ray's process around it."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[1:4] == ["-m", "serve", "arm"]:
                found[process.pid] = psutil.Process(process.ppid()).ppid()
    return found


def test_the_arms_are_on_two_nodes_and_get_the_routers_requests(folder: Path, port: int) -> None:
    started = arm_processes()
    assert len(started) == len(set(started.values())) == 2
    digests = {name: Manifest.read(folder / name).digest for name in "ab"}
    for weight in (30, 70):
        if weight == 70:
            deploy(folder, weight, port)
        for user, arm in expected(folder, weight).items():
            with ask(port, x_user_id=user) as answer:
                assert answer.headers["x-ab-arm"] == arm
                assert answer.headers["x-artifact-digest"] == digests[arm]
    assert arm_processes() == started, "another split, the same arms"


def test_answers_are_streamed(port: int) -> None:
    body = {"messages": [{"role": "user", "content": "Code of Zafolo?"}], "max_tokens": 32, "temperature": 0}
    with ask(port, "/v1/chat/completions", body, x_user_id="u1") as answer:
        whole = json.load(answer)["choices"][0]["message"]["content"]
    with ask(port, "/v1/chat/completions", body | {"stream": True}, x_user_id="u1") as answer:
        events = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert "".join(deltas) == whole
    assert len(deltas) > 2


def test_an_arm_that_does_not_answer_has_its_fallback(port: int) -> None:
    with ask(port, x_team="lost") as answer:
        assert answer.headers["x-ab-arm"] == "b"


def test_an_arm_for_a_gpu_is_put_beside_it(folder: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(folder / "a")
    needs = {"device": "sm89", "memory_bytes": 5_000_000_000}
    for name in "ab":
        (tmp_path / name).mkdir()
        manifest.model_copy(update={"requires": needs if name == "a" else {}}).write(tmp_path / name)
    (app,) = compiled(tmp_path, text(tmp_path, 30)).applications
    gpu, cpu = (part.ray_actor_options for part in app.deployments[:2])
    assert (gpu.num_gpus, gpu.label_selector, gpu.memory) == (1, {"gpu": "sm89"}, 5_000_000_000)
    assert (cpu.num_cpus, cpu.num_gpus) == (1, None)


@pytest.mark.parametrize(
    ("more", "told"),
    [("mirror: {arm: a, percent: 1}\n", "a mirror"), ("rollout: {arm: a}\n", "a rollout")],
)
def test_what_is_the_routers_is_refused(
    more: str, told: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text(text(folder, 30, more))
    assert main(["compile", str(tmp_path / "policy.yaml"), "--to", "ray"]) == 1
    assert f"ray cannot express {told}" in capsys.readouterr().err
