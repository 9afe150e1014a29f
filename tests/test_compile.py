"""Compiled policies in the real proxies: the same requests get the same arms as from the router."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import yaml

from bench.router import servers
from engines.errors import UserError
from engines.ports import free_port
from serve.compile import TARGETS, compile_policy
from serve.router.assignment import Assigner
from serve.router.policy import Policy
from serve.router.reading import parse_policy
from tests.scripted_arm import answers, read_answer, scripted_arm
from tests.test_policy import SMALLEST

PROXIES = ("nginx", "haproxy", "envoy")
SPLITS = {
    "tenth": 'experiment: one\nsplit: {key: "header:x-user-id", weights: {a: 10, b: 90}}\n',
    "hundredths": "experiment: two\n"
    'split: {key: "header:x-user-id", weights: {a: 33.33, b: 16.68, c: 49.99}}\n',
    "least": "experiment: three\nsplit: {key: api-key, weights: {b: 99.99, a: 0.01}}\n",
    "rules": 'experiment: f-o.u_r\nsplit: {key: "header:x-user-id", weights: {a: 50, b: 50, c: 0}}\n'
    "overrides: {cidr: [127.0.0.2/32]}\nregion: {header: x-country}\ngroups:\n"
    "  - {header: x-team, values: [qa, a.b], arm: c}\n  - {cidr: [127.0.0.3/32, 127.0.1.0/24], arm: a}\n"
    "  - {region: [DE, FR], arm: c}\n",
}
KEYS = 2200
CHECK = {"nginx": ["-t"], "haproxy": ["-c"], "envoy": ["--mode", "validate"]}  # only reads its files
Case = tuple[list[tuple[str, bytes]], str]  # headers and the address a request comes from


def cases(split: str) -> list[Case]:
    """Requests to compare: keys of every length and alphabet, then each rule."""
    draw = random.Random(split)
    header = "authorization" if "api-key" in SPLITS[split] else "x-user-id"
    alphabets = ("0123456789", "abcdefABCDEF-", "user@example.org/=+ü", "!#$%&'*+.^_`|~[]{}\"\\")
    keys = [f"user-{number}" for number in range(KEYS // 2)]
    keys += ["".join(draw.choices(alphabets[n % 4], k=1 + n % 60)) for n in range(KEYS // 2)]
    found: list[Case] = [([(header, key.encode())], "127.0.0.1") for key in keys]
    if split != "rules":
        return found
    rules = [[], [("x-team", b"qa")], [("x-team", b"QA")], [("x-team", b"a.b")], [("x-team", b"axb")]]
    rules += [[("x-country", b"DE")], [("x-country", b"de")], [("x-country", b"FR"), ("x-team", b"qa")]]
    rules += [[("x-ab-override", name)] for name in (b"a", b"b", b"c")]
    sources = ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.1.9")
    return found[:400] + [(rule, source) for rule in rules for source in sources]


def program(target: str) -> str:
    """The test is skipped, with the reason, where its wheel is not installed."""
    pytest.importorskip(servers.PROXIES[target][0])
    return servers.program(target)


@contextmanager
def proxy(target: str, policy: Policy, folder: Path) -> Iterator[int]:
    """A real proxy that takes requests under a policy; its port."""
    command, port = servers.proxy_command(target, program(target)), free_port()
    for name, text in compile_policy(policy, target, f"127.0.0.1:{port}").items():
        (folder / name).write_text(text)
    folder.chmod(0o755)  # nginx's workers run as nobody
    with servers.started(command, folder, folder / "output", port):
        yield port


@asynccontextmanager
async def policy_of(split: str) -> AsyncIterator[Policy]:
    """Its arms answer with their names."""
    async with (
        scripted_arm(answers(b"a")) as a,
        scripted_arm(answers(b"b")) as b,
        scripted_arm(answers(b"c")) as c,
    ):
        arms = "".join(
            f'  {name}: {{url: "{arm.url}", digest: "sha256:{name}"}}\n'
            for name, arm in (("a", a), ("b", b), ("c", c))
        )
        yield parse_policy(f"baseline: b\narms:\n{arms}{SPLITS[split]}")


async def ask_all(port: int, requests: Iterable[Case]) -> list[tuple[int, str, str]]:
    """Status, body and x-ab-arm of each; one connection for each address."""
    connections: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    found = []
    for headers, source in requests:
        if source not in connections:
            connections[source] = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
        reader, writer = connections[source]
        fields = b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in headers)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: proxy\r\n%b\r\n" % fields)
        answer = await read_answer(reader)
        found.append((answer.status, answer.body.decode(), ",".join(answer.header("x-ab-arm"))))
        if answer.header("connection") == ["close"]:
            connections.pop(source)[1].close()
    for _, writer in connections.values():
        writer.close()
    return found


def expected(policy: Policy, requests: Iterable[Case]) -> list[tuple[int, str, str]]:
    assign = Assigner(policy)
    arms = [
        assign({name.encode(): value for name, value in headers}, source).arm for headers, source in requests
    ]
    return [(200, arm, arm) for arm in arms]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("target", PROXIES)
def test_assignments_equal_the_routers(target: str, split: str, tmp_path: Path) -> None:
    async def compare() -> None:
        async with policy_of(split) as policy:
            with proxy(target, policy, tmp_path) as port:
                requests = cases(split)
                got = await ask_all(port, requests)
                assert Counter(map(str, got)) == Counter(map(str, expected(policy, requests)))
                assert got == expected(policy, requests)

    asyncio.run(compare())


@pytest.mark.parametrize("target", PROXIES)
def test_rules_of_testers_and_repeated_headers(target: str, tmp_path: Path) -> None:
    """A tester's unknown arm is refused; what a proxy cannot read as the router does, it refuses."""
    twice: Case = ([("x-user-id", b"u1"), ("x-user-id", b"u2")], "127.0.0.1")
    unknown: Case = ([("x-ab-override", b"z")], "127.0.0.2")

    async def compare() -> None:
        async with policy_of("rules") as policy:
            with proxy(target, policy, tmp_path) as port:
                (refused,) = await ask_all(port, [unknown])
                assert refused[0] == 400
                (repeated,) = await ask_all(port, [twice])
                joined: Case = ([("x-user-id", b"u1, u2")], "127.0.0.1")
                assert repeated == expected(policy, [joined])[0] if target == "nginx" else repeated[0] == 400

    asyncio.run(compare())


@pytest.mark.parametrize("target", PROXIES)
def test_random_split_holds_its_shares(target: str, tmp_path: Path) -> None:
    async def compare() -> None:
        async with policy_of("tenth") as sticky:
            split = sticky.split.model_copy(update={"mode": "random", "key": None})
            policy = sticky.model_copy(update={"split": split})
            with proxy(target, policy, tmp_path) as port:
                counts = Counter(await ask_all(port, [([], "127.0.0.1")] * 2000))
                assert set(counts) == {(200, "a", "a"), (200, "b", "b")}
                assert 140 < counts[200, "a", "a"] < 260  # 4.5 standard deviations of 200

    asyncio.run(compare())


@pytest.mark.parametrize("target", PROXIES)
def test_programs_accept_their_files(target: str, tmp_path: Path) -> None:
    command = [*servers.proxy_command(target, program(target)), *CHECK[target]]
    more = "fallback: [b]\n" if target != "envoy" else "mirror: {arm: c, percent: 5}\n"
    policy = parse_policy(
        "baseline: b\narms:\n"
        + "".join(f'  {name}: {{url: "http://127.0.0.1:1"}}\n' for name in "abc")
        + SPLITS["rules"]
        + more
    )
    for name, text in compile_policy(policy, target, "127.0.0.1:2").items():
        (tmp_path / name).write_text(text)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_gateway_api_routes() -> None:
    policy = parse_policy(
        "experiment: E.1\nbaseline: b\narms:\n"
        '  a: {url: "http://arm-a.models:8000", digest: "sha256:a"}\n  b: {url: "http://arm-b:8000"}\n'
        "split: {mode: random, weights: {a: 2.5, b: 97.5}}\n"
        "groups: [{header: x-team, values: [qa], arm: a}]\nmirror: {arm: a, percent: 1}\n"
    )
    (text,) = compile_policy(policy, "gateway-api", "").values()
    group, split = yaml.safe_load(text)["spec"]["rules"]
    assert group["matches"] == [{"headers": [{"type": "Exact", "name": "x-team", "value": "qa"}]}]
    assert "filters" not in group, "arm a gets no copies of its own requests"
    assert [(ref["name"], ref["weight"]) for ref in split["backendRefs"]] == [("arm-a", 250), ("arm-b", 9750)]
    assert split["filters"][0]["requestMirror"]["fraction"] == {"numerator": 100, "denominator": 10000}


def test_istio_routes() -> None:
    policy = parse_policy(
        "experiment: e\nbaseline: b\narms:\n"
        '  a: {url: "http://arm-a.models.svc.cluster.local:8000"}\n  b: {url: "http://arm-b:8000"}\n'
        "split: {mode: random, weights: {a: 2.5, b: 97.5}}\n"
        "groups: [{header: x-team, values: [qa, qb], arm: a}]\nmirror: {arm: a, percent: 1.25}\n"
    )
    (text,) = compile_policy(policy, "istio", "models.example:80").values()
    spec = yaml.safe_load(text)["spec"]
    assert spec["hosts"] == ["models.example"]
    group, split = spec["http"]
    assert [match["headers"]["x-team"] for match in group["match"]] == [{"exact": "qa"}, {"exact": "qb"}]
    assert [(to["destination"]["host"], to["weight"]) for to in split["route"]] == [
        ("arm-a.models.svc.cluster.local", 250),
        ("arm-b", 9750),
    ]
    assert split["mirrors"][0]["percentage"] == {"value": 1.25}
    assert "mirrors" not in group


HASTY = {"url": "http://x:1", "timeouts": {"idle_s": 9}}
BASE = {
    "experiment": "e",
    "baseline": "b",
    "arms": {name: {"url": f"http://arm-{name}:80"} for name in "ab"},
    "split": {"mode": "sticky", "key": "header:x-u", "weights": {"a": 10, "b": 90}},
}


@pytest.mark.parametrize(
    ("targets", "change", "told"),
    [
        ("nginx haproxy envoy", {"split": BASE["split"] | {"key": "user"}}, "in the body"),
        ("nginx haproxy envoy", {"arms": {**BASE["arms"], "a": {"artifact": "x"}}}, "without a url"),
        ("nginx haproxy envoy", {"region": {"database": "x.mmdb"}}, "region.database"),
        (
            "nginx haproxy envoy",
            {"arms": dict.fromkeys("ab", HASTY)},
            "first_byte_s",
        ),
        ("haproxy", {"mirror": {"arm": "a", "percent": 1}}, "a mirror"),
        (
            "envoy gateway-api istio",
            {"fallback": ["b"], "split": {"mode": "random", "weights": {"b": 100}}},
            "fallback",
        ),
        ("envoy", {"groups": [{"cidr": ["fd00::/8"], "arm": "a"}]}, "IPv6"),
        ("gateway-api istio", {}, "a sticky split"),
    ],
)
def test_what_a_target_cannot_express_is_refused(targets: str, change: dict[str, object], told: str) -> None:
    policy = parse_policy(json.dumps(BASE | change))
    for target in targets.split():
        with pytest.raises(UserError, match=f"{target} cannot express .*{told}"):
            compile_policy(policy, target, "127.0.0.1:80")


@pytest.mark.parametrize("target", PROXIES)
def test_the_smallest_policy_compiles(target: str) -> None:
    assert compile_policy(parse_policy(SMALLEST), target, "127.0.0.1:80")


def test_an_arm_takes_as_many_requests_behind_envoy_as_the_policy_says() -> None:
    """Envoy counts three things, and what is not said is 1,024 of each."""
    arms = {name: {"url": f"http://arm-{name}:80", "max_requests": 16_000} for name in "ab"}
    (text,) = compile_policy(
        parse_policy(json.dumps(BASE | {"arms": arms})), "envoy", "127.0.0.1:80"
    ).values()
    for cluster in yaml.safe_load(text)["static_resources"]["clusters"]:
        (limits,) = cluster["circuit_breakers"]["thresholds"]
        assert limits == dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 16_000)


def test_every_target_is_tried() -> None:
    assert set(TARGETS) == {*PROXIES, "gateway-api", "istio"}
