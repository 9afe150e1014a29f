"""Kubernetes: what each arm that has an artifact runs as, and the router before them."""

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
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
ARTIFACTS_MOUNT: Json = {"name": ARTIFACTS, "mountPath": f"/{ARTIFACTS}", "readOnly": True}
TMP_MOUNT: Json = {"name": "tmp", "mountPath": "/tmp"}
# An arm grows while on average over 2 sequences wait or 6 of its 8 slots are taken.
BUSY = {"arm_waiting_sequences": "2", "arm_running_sequences": "6"}


def kubernetes(policy: Policy, text: str, image: str) -> dict[str, str]:
    """Manifests by file name, a Kustomize base. `text` is the policy's; `image` is the Dockerfile's `serve`.

    Expected of the cluster: a claim `artifacts` with the artifacts' folders, readable on every node, and a
    Secret `router-admin` with a `token`; for arms to grow, a metrics API with their own metrics. Raises
    UserError where a url is no Service's.
    """
    arms = [part for name, arm in policy.arms.items() if arm.artifact for part in _arm(name, arm, image)]
    base = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["arms.yaml", "router.yaml"],
    }
    return {
        "kustomization.yaml": dump(base),
        "arms.yaml": dump(*arms),
        "router.yaml": dump(*_router(text, image)),
    }


def _arm(name: str, arm: Arm, image: str) -> list[Json]:
    found = SERVICE.fullmatch(arm.url or "")
    if not found:
        raise UserError(
            f"kubernetes cannot express arm {name} at {arm.url}; expected http://SERVICE.NAMESPACE:PORT"
        )
    service, port = found[1], int(found[4])
    pod = {
        "containers": [{"name": "arm", **arm_container(arm.artifact or "", port, image)}],
        "volumes": arm_volumes(),
        "terminationGracePeriodSeconds": 660,  # a request may take ten minutes
    }
    return [
        _deployment(service, "arm", pod),
        _service(service, service, "arm", "http", port),
        _autoscaler(service),
        _disruption_budget(service),
    ]


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
        "ports": [{"containerPort": port, "name": "http"}],
        # Loading and the self-test take as long as they take; only then is a silent arm a dead one.
        "startupProbe": {**ready, "periodSeconds": 5, "failureThreshold": 240},
        "readinessProbe": ready,
        "livenessProbe": {"httpGet": {"path": "/health", "port": port}, "failureThreshold": 6},
        "volumeMounts": [ARTIFACTS_MOUNT, TMP_MOUNT],
        "securityContext": UNPRIVILEGED,
    }


def arm_volumes() -> list[Json]:
    """Of a pod with an arm: the claim, and where uploads too large for memory go."""
    claim = {"name": ARTIFACTS, "persistentVolumeClaim": {"claimName": ARTIFACTS, "readOnly": True}}
    return [claim, {"name": "tmp", "emptyDir": {}}]


def _autoscaler(service: str) -> Json:
    metrics = [
        {
            "type": "Pods",
            "pods": {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": most}},
        }
        for name, most in BUSY.items()
    ]
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": service},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": service},
            "minReplicas": 2,
            "maxReplicas": 8,
            "metrics": metrics,
        },
    }


def _disruption_budget(service: str) -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": service},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/name": service}}},
    }


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
        "livenessProbe": {"httpGet": {"path": "/", "port": ADMIN}, "failureThreshold": 6},
        "volumeMounts": [
            {"name": "policy", "mountPath": "/policy", "readOnly": True},
            {"name": "admin", "mountPath": "/admin", "readOnly": True},
            {"name": "state", "mountPath": "/state"},
            ARTIFACTS_MOUNT,
            TMP_MOUNT,
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
            *arm_volumes(),
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
    deployment = _deployment("router", "router", pod)
    # One router at a time owns the versions, the ramp and its evidence.
    deployment["spec"] |= {"replicas": 1, "strategy": {"type": "Recreate"}}
    return [
        policy,
        claim,
        deployment,
        _service("router", "router", "router", "traffic", TRAFFIC),
        _service("router-admin", "router", "router", "admin", ADMIN),
    ]


def _deployment(name: str, component: str, pod: Json) -> Json:
    selected = {"app.kubernetes.io/name": name}
    labels = {**selected, "app.kubernetes.io/component": component}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "selector": {"matchLabels": selected},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"automountServiceAccountToken": False, **pod},
            },
        },
    }


def _service(name: str, of: str, component: str, port_name: str, port: int) -> Json:
    """By the label Prometheus finds it, and names its job."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/component": component}},
        "spec": {
            "selector": {"app.kubernetes.io/name": of},
            "ports": [{"name": port_name, "port": port, "targetPort": port_name}],
        },
    }


class _Whole(yaml.SafeDumper):
    """Writes what occurs twice twice, for people."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(*documents: Json) -> str:
    """YAML of manifests."""
    return yaml.dump_all(documents, Dumper=_Whole, sort_keys=False)
