"""A policy on Ray Serve: two nodes on this machine, an arm on each, and the router's assignments."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import pytest

from bench.router.servers import free_port
from engines.artifact import Manifest
from engines.errors import UserError
from serve.router.assignment import Assigner
from serve.router.reading import parse_policy
from tests.live_arm import built
from tests.ray_cluster import two_nodes

ray = pytest.importorskip("ray", reason="ray is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray itself warns of much


def text(folder: Path, weight: int, more: str = "") -> str:
    return (
        "experiment: e\nbaseline: b\nfallback: [b]\narms:\n"
        f"  a: {{artifact: {folder}/a}}\n  b: {{artifact: {folder}/b}}\n"
        '  gone: {url: "http://127.0.0.1:1"}\n'
        f'split: {{key: "header:x-user-id", weights: {{a: {weight}, b: {100 - weight}}}}}\n'
        "groups: [{header: x-team, values: [lost], arm: gone}]\n" + more
    )


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
    with two_nodes() as (cluster, _):
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        try:
            serve.start(proxy_location="HeadOnly", http_options={"port": port})
            deploy(folder, 30)
            yield port
        finally:
            ray.shutdown()


def deploy(folder: Path, weight: int) -> None:
    from ray import serve

    from serve.deploy.ray import app

    (folder / "policy.yaml").write_text(text(folder, weight))
    serve.run(app({"policy": str(folder / "policy.yaml")}), route_prefix="/")


def ask(port: int, path: str = "/ready", body: object = None, **headers: str) -> HTTPResponse:
    data = None if body is None else json.dumps(body).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    fields["content-type"] = "application/json"
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, fields)
    return urllib.request.urlopen(request, timeout=120)


def test_the_arms_are_on_two_nodes_and_get_the_routers_requests(folder: Path, port: int) -> None:
    nodes = [node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"]]
    assert nodes == [1, 1]
    assert not ray.available_resources().get("CPU"), "an arm takes a whole CPU: each node has one of them"
    users = [f"u{number}" for number in range(40)]
    for weight in (30, 70):
        if weight == 70:
            deploy(folder, weight)
        assign = Assigner(parse_policy(text(folder, weight)))
        expected = [assign({b"x-user-id": user.encode()}, "127.0.0.1").arm for user in users]
        digests = {name: Manifest.read(folder / name).digest for name in "ab"}
        for user, arm in zip(users, expected, strict=True):
            with ask(port, x_user_id=user) as answer:
                assert answer.headers["x-ab-arm"] == arm
                assert answer.headers["x-artifact-digest"] == digests[arm]


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


@pytest.mark.parametrize(
    ("more", "told"),
    [("mirror: {arm: a, percent: 1}\n", "a mirror"), ("rollout: {arm: a}\n", "a rollout")],
)
def test_what_is_the_routers_is_refused(more: str, told: str, tmp_path: Path) -> None:
    from serve.deploy.ray import checked

    with pytest.raises(UserError, match=f"ray cannot express {told}"):
        checked(text(tmp_path, 30, more))
