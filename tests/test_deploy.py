"""Manifests for clusters: accepted by the schemas of Kubernetes, the Gateway API and KServe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from serve.__main__ import main
from serve.arm.metrics import Metrics
from serve.compile import compile_policy
from serve.deploy.kubernetes import BUSY
from serve.router.reading import parse_policy
from tests.manifests import DATA, hold_together, of_kind, validate

ARMS = """experiment: E.1
baseline: b
arms:
  a: {url: "http://arm-a.models:8000", artifact: artifacts/m/a, digest: "sha256:a"}
  b: {url: "http://arm-b.models:8001", artifact: artifacts/m/b, digest: "sha256:b"}
"""
STICKY = ARMS + 'split: {key: "header:x-user-id", weights: {a: 2.5, b: 97.5}}\n'
RANDOM = ARMS + "split: {mode: random, weights: {a: 20, b: 80}}\n"
GROUPS = "groups: [{header: x-team, values: [qa, qb], arm: a}]\nmirror: {arm: a, percent: 1.25}\n"


def compiled(folder: Path, policy: str, *options: str) -> dict[str, list[dict[str, Any]]]:
    """Documents by file, as the command line writes them."""
    (folder / "policy.yaml").write_text(policy)
    assert main(["compile", str(folder / "policy.yaml"), *options, "-o", str(folder / "out")]) == 0
    return {file.name: list(yaml.safe_load_all(file.read_text())) for file in (folder / "out").iterdir()}


def test_arms_and_router_on_kubernetes(tmp_path: Path) -> None:
    """Valid, and what belongs together does."""
    files = compiled(tmp_path, STICKY, "--to", "kubernetes", "--image", "registry.example/serve:1")
    (base,) = files.pop("kustomization.yaml")
    assert set(base["resources"]) == set(files)
    documents = [document for found in files.values() for document in found]
    for document in documents:
        validate(document)
    hold_together(documents)
    names = [(part["kind"], part["metadata"]["name"]) for part in files["arms.yaml"]]
    kinds = ("Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget")
    assert names == [(kind, name) for name in ("arm-a", "arm-b") for kind in kinds]
    services = sorted(part["metadata"]["name"] for part in of_kind(documents, "Service"))
    assert services == ["arm-a", "arm-b", "router", "router-admin"]
    (kept,) = (part["data"]["policy.yaml"] for part in of_kind(documents, "ConfigMap"))
    assert kept == STICKY, "the router gets the very policy"


def test_an_arm_grows_by_what_it_shows() -> None:
    """The metrics that the autoscaler asks for are those of an arm."""
    text = Metrics().text().decode()
    assert all(f"# TYPE {name} gauge" in text for name in BUSY)


@pytest.mark.parametrize("more", ["", GROUPS])
def test_routes_of_the_gateway_api(more: str, tmp_path: Path) -> None:
    ((route,),) = compiled(tmp_path, RANDOM + more, "--to", "gateway-api").values()
    validate(route)
    route["spec"]["rules"][0]["backendRefs"][0]["wieght"] = 1
    with pytest.raises(jsonschema.ValidationError, match="wieght"):
        validate(route)


@pytest.mark.parametrize("more", ["", GROUPS])
def test_routes_of_istio(more: str, tmp_path: Path) -> None:
    ((route,),) = compiled(tmp_path, RANDOM + more, "--to", "istio").values()
    validate(route)
    route["spec"]["http"][0]["route"][0]["wieght"] = 1
    with pytest.raises(AssertionError, match="wieght"):
        validate(route)


@pytest.mark.parametrize(
    "groups",
    [
        [{"header": "x-team", "values": [f"t{number}" for number in range(65)], "arm": "a"}],
        [{"header": "x-team", "values": [f"t{number}"], "arm": "a"} for number in range(16)],
    ],
)
def test_more_than_a_route_holds_is_refused(
    groups: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the schema would refuse, told before."""
    (tmp_path / "policy.yaml").write_text(RANDOM + yaml.safe_dump({"groups": groups}))
    assert main(["compile", str(tmp_path / "policy.yaml"), "--to", "gateway-api"]) == 1
    assert "gateway-api cannot express" in capsys.readouterr().err


def test_a_canary_of_kserve(tmp_path: Path) -> None:
    """Fields and types are those of KServe's own models; what is in the pods is Kubernetes'."""
    ((service,),) = compiled(tmp_path, RANDOM, "--to", "kserve", "--image", "i").values()
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    check(service, "InferenceService")
    baseline, (canary,) = service["spec"]["predictor"], service["spec"]["canary"]
    assert canary["trafficPercent"] == 20
    for predictor, artifact in ((baseline, "artifacts/m/b"), (canary["predictor"], "artifacts/m/a")):
        assert artifact in predictor["containers"][0]["command"]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": predictor}
        validate(pod)
    service["spec"]["canary"][0]["trafficPercnt"] = 1
    with pytest.raises(AssertionError, match="trafficPercnt"):
        check(service, "InferenceService")


def check(found: Any, kind: str) -> None:
    """`found` has no field that its model has not, as deep as models are known."""
    known = json.loads((DATA / "kserve.json").read_text())
    if kind.startswith("list["):
        for one in found:
            check(one, kind[5:-1])
    elif kind in known:
        assert not found.keys() - known[kind].keys(), found.keys() - known[kind].keys()
        for name, value in found.items():
            check(value, known[kind][name])
    elif kind in ("int", "str"):
        assert type(found).__name__ == kind


@pytest.mark.parametrize(
    ("target", "change", "told"),
    [
        ("kserve", ("mode: random", 'key: "header:x-user-id"'), "a sticky split"),
        ("kserve", ("a: 20, b: 80", "a: 20.5, b: 79.5"), "hundredths of a percent"),
        ("kserve", ("a: 20, b: 80", "a: 0, b: 100"), "all or nothing"),
        ("kserve", ("a: 20, b: 80", "a: 100, b: 0"), "all or nothing"),
        ("kserve", ("split", "fallback: [b]\nsplit"), "a fallback"),
        ("kserve", ("split", "mirror: {arm: a, percent: 1}\nsplit"), "a mirror"),
        ("kserve", ("split", "groups: [{header: x, values: [y], arm: a}]\nsplit"), "groups"),
        ("kserve", ("split", "overrides: {cidr: [10.0.0.0/8]}\nsplit"), "overrides"),
        ("kserve", (", artifact: artifacts/m/a", ""), "arm a needs an artifact"),
        ("kserve", ("artifacts/m/a", "/home/me/a"), "the claim artifacts"),
        ("kubernetes", ("artifacts/m/a", "../artifacts/m/a"), "the claim artifacts"),
        ("kubernetes", ("http://arm-a.models:8000", "http://10.0.0.1:8000"), "expected http://SERVICE"),
        ("nginx", ("", ""), "--image is for kubernetes and kserve"),
    ],
)
def test_what_a_cluster_cannot_have_is_refused(
    target: str, change: tuple[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "policy.yaml").write_text(RANDOM.replace(*change) if change[0] else RANDOM)
    assert main(["compile", str(tmp_path / "policy.yaml"), "--to", target, "--image", "i"]) == 1
    assert told in capsys.readouterr().err


def test_clusters_need_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "policy.yaml").write_text(RANDOM)
    assert main(["compile", str(tmp_path / "policy.yaml"), "--to", "kserve"]) == 1
    assert "--image is for kubernetes and kserve, which need it" in capsys.readouterr().err


def test_a_mirror_share_is_exact() -> None:
    (text,) = compile_policy(
        parse_policy(RANDOM + "mirror: {arm: a, percent: 1.25}\n"), "gateway-api", ""
    ).values()
    (copy,) = yaml.safe_load(text)["spec"]["rules"][-1]["filters"]
    assert copy["requestMirror"]["fraction"] == {"numerator": 125, "denominator": 10_000}
