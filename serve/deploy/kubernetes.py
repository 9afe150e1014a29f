"""Kubernetes: a Deployment and a Service for each arm that has an artifact, and the router before them."""

from __future__ import annotations

from typing import Any

import yaml

from engines.errors import UserError
from serve.compile.gateway_api import SERVICE
from serve.router.policy import Arm, Policy

Json = dict[str, Any]
ARTIFACTS = "artifacts"  # a PersistentVolumeClaim, and where it is mounted in an arm
PROJECT = "/project"  # the checkout in the image
TRAFFIC, ADMIN = 8080, 8090
UNPRIVILEGED: Json = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


def kubernetes(policy: Policy, text: str, image: str) -> dict[str, str]:
    """Manifests by file name. `text` is the policy's; `image` has requirements/serve.txt and this project.

    Expected of the cluster: a claim `artifacts` with the artifacts' folders, readable on every node, and a
    Secret `router-admin` with a `token`. Raises UserError where a url is no Service's.
    """
    arms = [part for name, arm in policy.arms.items() if arm.artifact for part in _arm(name, arm, image)]
    return {"arms.yaml": _dump(arms), "router.yaml": _dump(_router(text, image))}


def _arm(name: str, arm: Arm, image: str) -> list[Json]:
    found = SERVICE.fullmatch(arm.url or "")
    if not found:
        raise UserError(
            f"kubernetes cannot express arm {name} at {arm.url}; expected http://SERVICE.NAMESPACE:PORT"
        )
    service, port = found[1], int(found[4])
    pod = {
        "containers": [{"name": "arm", **arm_container(arm.artifact or "", port, image)}],
        "volumes": [artifact_volume()],
        "terminationGracePeriodSeconds": 660,  # a request may take ten minutes
    }
    return [_deployment(service, pod), _service(service, service, port)]


def arm_container(artifact: str, port: int, image: str) -> Json:
    """Serves one artifact, which lies at `artifact` in the claim."""
    if not artifact.startswith(f"{ARTIFACTS}/"):
        raise UserError(f"the cluster mounts the claim {ARTIFACTS}: found {artifact}, expected {ARTIFACTS}/…")
    ready = {"httpGet": {"path": "/ready", "port": port}}
    return {
        "image": image,
        "workingDir": "/",
        "command": ["python", "-m", "serve", "arm", artifact, "--host", "0.0.0.0", "--port", str(port)],
        "env": [{"name": "PYTHONPATH", "value": PROJECT}],
        "ports": [{"containerPort": port}],
        # Loading and the self-test take as long as they take; only then is a silent arm a dead one.
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": 240},
        "readinessProbe": ready,
        "livenessProbe": {"httpGet": {"path": "/health", "port": port}, "failureThreshold": 6},
        "volumeMounts": [{"name": ARTIFACTS, "mountPath": f"/{ARTIFACTS}", "readOnly": True}],
        "securityContext": UNPRIVILEGED,
    }


def artifact_volume() -> Json:
    """The claim, for a pod with an arm."""
    return {"name": ARTIFACTS, "persistentVolumeClaim": {"claimName": ARTIFACTS, "readOnly": True}}


def _router(text: str, image: str) -> list[Json]:
    command = ["python", "-m", "serve", "router", "/policy/policy.yaml", "--host", "0.0.0.0", "--log-stdout"]
    command += ["--admin-host", "0.0.0.0", "--admin-token-file", "/admin/token", "--state", "/state"]
    container = {
        "name": "router",
        "image": image,
        "workingDir": "/",  # a gate or digest is read from the artifacts, as an arm does
        "command": command,
        "env": [{"name": "PYTHONPATH", "value": PROJECT}],
        "ports": [{"containerPort": TRAFFIC, "name": "traffic"}, {"containerPort": ADMIN, "name": "admin"}],
        "readinessProbe": {"tcpSocket": {"port": TRAFFIC}},
        "volumeMounts": [
            {"name": "policy", "mountPath": "/policy", "readOnly": True},
            {"name": "admin", "mountPath": "/admin", "readOnly": True},
            {"name": "state", "mountPath": "/state"},
            {"name": ARTIFACTS, "mountPath": f"/{ARTIFACTS}", "readOnly": True},
        ],
        "securityContext": UNPRIVILEGED,
    }
    pod = {
        "containers": [container],
        "securityContext": {"fsGroup": 10001},
        "volumes": [
            {"name": "policy", "configMap": {"name": "router-policy"}},
            {
                "name": "admin",
                "secret": {"secretName": "router-admin", "items": [{"key": "token", "path": "token"}]},
            },
            {"name": "state", "persistentVolumeClaim": {"claimName": "router-state"}},
            artifact_volume(),
        ],
        "terminationGracePeriodSeconds": 45,  # it drains for 30 s
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "router-state"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    policy = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "router-policy"},
        "data": {"policy.yaml": text},
    }
    deployment = _deployment("router", pod)
    # One router at a time owns the versions, the ramp and its evidence.
    deployment["spec"] |= {"replicas": 1, "strategy": {"type": "Recreate"}}
    return [
        policy,
        claim,
        deployment,
        _service("router", "router", TRAFFIC),
        _service("router-admin", "router", ADMIN),
    ]


def _deployment(name: str, pod: Json) -> Json:
    labels = {"app.kubernetes.io/name": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _service(name: str, of: str, port: int) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app.kubernetes.io/name": of}, "ports": [{"port": port, "targetPort": port}]},
    }


def _dump(documents: list[Json]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False)
