"""The Kustomize tree, put together by kubectl's own kustomize."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from build.__main__ import parser
from serve.__main__ import main
from tests.conftest import ROOT
from tests.manifests import hold_together, of_kind, validate

TREE = ROOT / "serve" / "deploy" / "kustomize"
MONITORING = ROOT / "serve" / "monitoring"


def kustomize(folder: Path) -> list[dict[str, Any]]:
    kubectl = shutil.which("kubectl")
    if kubectl is None and not os.environ.get("CI"):
        pytest.skip("kubectl is not installed; .ci/run gets it from a package")
    assert kubectl, "kubectl is missing in CI; see .ci/run"
    done = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "a warning"
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return kustomize(TREE)


def test_the_base_is_what_its_policy_compiles_to(tmp_path: Path) -> None:
    """Its first comment tells the command."""
    words = ["--to", "kubernetes", "--image", "variants-serve", "-o", str(tmp_path)]
    assert " ".join(words[:-1]) in (TREE / "kustomization.yaml").read_text()
    assert main(["compile", str(TREE / "base" / "policy.yaml"), *words]) == 0
    for file in tmp_path.iterdir():
        assert (TREE / "base" / file.name).read_text() == file.read_text()


def test_all_of_it_is_valid_and_belongs_together(documents: list[dict[str, Any]]) -> None:
    kinds = [document["kind"] for document in documents]
    assert {"HTTPRoute", "VirtualService", "ServiceMonitor", "PrometheusRule", "Job"} <= set(kinds)
    for document in documents:
        validate(document)
    hold_together(documents)
    # In the namespace that the policy's urls name.
    assert {document["metadata"]["namespace"] for document in documents} == {"models"}
    claims = {part["metadata"]["name"] for part in of_kind(documents, "PersistentVolumeClaim")}
    configs = {part["metadata"]["name"] for part in of_kind(documents, "ConfigMap")}
    images = []
    for pod in of_kind(documents, "Deployment", "Job"):
        spec = pod["spec"]["template"]["spec"]
        for volume in spec["volumes"]:
            assert volume.get("persistentVolumeClaim", {"claimName": "artifacts"})["claimName"] in claims
            assert volume.get("configMap", {"name": "router-policy"})["name"] in configs
        images += [container["image"] for container in spec["containers"]]
    assert all(":" in image for image in images), "each image has a version"


def test_variants_are_pulled_to_where_arms_find_them(documents: list[dict[str, Any]]) -> None:
    (job,) = of_kind(documents, "Job")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (line,) = re.findall(r"python -m build (.*)", container["args"][0])
    asked = parser().parse_args(shlex.split(line))
    mounts = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
    assert (asked.command, asked.out, asked.key.parent) == ("pull", mounts["artifacts"], mounts["key"])
    policy = yaml.safe_load((TREE / "base" / "policy.yaml").read_text())
    assert len(container["env"]) == len(policy["arms"])


def test_routes_lead_to_the_router(documents: list[dict[str, Any]]) -> None:
    ports = {
        (service["metadata"]["name"], port["port"])
        for service in of_kind(documents, "Service")
        for port in service["spec"]["ports"]
    }
    (route,) = of_kind(documents, "HTTPRoute")
    (virtual,) = of_kind(documents, "VirtualService")
    backend = route["spec"]["rules"][0]["backendRefs"][0]
    destination = virtual["spec"]["http"][0]["route"][0]["destination"]
    assert (backend["name"], backend["port"]) in ports
    assert (destination["host"], destination["port"]["number"]) in ports


def test_the_log_is_read_where_it_is_written(documents: list[dict[str, Any]]) -> None:
    (router,) = [part for part in of_kind(documents, "Deployment") if part["metadata"]["name"] == "router"]
    ours, reader = sorted(
        router["spec"]["template"]["spec"]["containers"], key=lambda container: container["name"] != "router"
    )
    config = yaml.safe_load((TREE / "logging" / "fluent-bit.yaml").read_text())
    (source,), (sink,) = config["pipeline"]["inputs"], config["pipeline"]["outputs"]
    assert ours["command"][-2:] == ["--log", source["path"]]
    log = {mount["mountPath"] for mount in ours["volumeMounts"] if mount["name"] == "log"}
    assert log == {mount["mountPath"] for mount in reader["volumeMounts"] if mount["name"] == "log"}
    assert {str(Path(source["path"]).parent), str(Path(source["db"]).parent)} == log
    assert sink["match"] == source["tag"]
    assert source["parser"] == config["parsers"][0]["name"]


def test_the_operator_has_the_same_rules() -> None:
    plain = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    rule = yaml.safe_load((MONITORING / "prometheusrule.yaml").read_text())
    assert rule["spec"] == plain
