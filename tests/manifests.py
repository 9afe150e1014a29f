"""Manifests held to the schemas of those who read them, and to each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from cloudcoil.models.istio.networking.v1 import VirtualService
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

from serve.__main__ import main

Manifest = dict[str, Any]
DATA = Path(__file__).resolve().parent / "data"
KUBERNETES = "1.37"
MODELS = {model.__name__: model for model in (PrometheusRule, ServiceMonitor, VirtualService)}


def validate(document: Manifest) -> None:
    """A field that is unknown, missing or of the wrong type raises."""
    kind = document["kind"]
    if kind == "HTTPRoute":
        jsonschema.validate(document, json.loads((DATA / "httproute.json").read_text()))
    elif kind in MODELS:
        read = MODELS[kind].model_validate(document)
        known = read.model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert known == document, f"fields that {kind} does not know are dropped: {document} became {known}"
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def of_kind(documents: Sequence[Manifest], *kinds: str) -> list[Manifest]:
    return [document for document in documents if document["kind"] in kinds]


def hold_together(documents: Sequence[Manifest]) -> None:
    """What no schema sees: selectors, mounts, ports, claims and commands that belong together."""
    pods = [part["spec"]["template"] for part in of_kind(documents, "Deployment", "Job")]
    deployments = {part["metadata"]["name"] for part in of_kind(documents, "Deployment")}
    services = of_kind(documents, "Service")
    for service in services:
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports_of(
            selected(pods, service["spec"]["selector"])
        )
    for budget in of_kind(documents, "PodDisruptionBudget"):
        selected(pods, budget["spec"]["selector"]["matchLabels"])
    for scaler in of_kind(documents, "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments
    for monitor in of_kind(documents, "ServiceMonitor"):
        labels = monitor["spec"]["selector"]["matchLabels"]
        (endpoint,) = monitor["spec"]["endpoints"]
        named = {
            port["name"] for service in services if has(service, labels) for port in service["spec"]["ports"]
        }
        assert endpoint["port"] in named
        assert labels.keys() == {monitor["spec"]["jobLabel"]}
    for pod in pods:
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        containers = pod["spec"]["containers"]
        assert {mount["name"] for one in containers for mount in one["volumeMounts"]} == volumes
        for one in containers:
            is_unprivileged(one, pod)
            if one["command"][:3] == ["python", "-m", "serve"]:
                with pytest.raises(SystemExit) as done:  # this command line is one of ours
                    main([*one["command"][3:], "--help"])
                assert done.value.code == 0


def has(document: Manifest, labels: Manifest) -> bool:
    return labels.items() <= document.get("metadata", {}).get("labels", {}).items()


def selected(pods: Sequence[Manifest], labels: Manifest) -> Manifest:
    """The one pod with these labels."""
    (pod,) = [pod for pod in pods if has(pod, labels)]
    return pod


def ports_of(pod: Manifest) -> set[str]:
    return {port["name"] for port in pod["spec"]["containers"][0]["ports"]}


def is_unprivileged(container: Manifest, pod: Manifest) -> None:
    """As the Pod Security Standard `restricted` asks, and a root file system that is read-only."""
    context = pod["spec"].get("securityContext", {}) | container["securityContext"]
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["spec"]["automountServiceAccountToken"] is False
