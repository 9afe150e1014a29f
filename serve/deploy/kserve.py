"""KServe: an InferenceService of the baseline with the other arms as canaries, split by chance."""

from __future__ import annotations

from engines.errors import UserError
from serve.compile.gateway_api import resource_name
from serve.compile.refusals import refuse
from serve.deploy.kubernetes import ARTIFACTS, arm_container, arm_volumes, dump
from serve.router.assignment import parts
from serve.router.policy import HUNDRED, Policy

PORT = 8080


def kserve(policy: Policy, image: str) -> dict[str, str]:
    """One InferenceService (serving.kserve.io/v1beta1) of KServe 0.20 or newer, which has `spec.canary`.

    KServe knows arms and whole percents of chance, and nothing else of a policy: the rest is refused.
    """
    arms = [name for _, name in parts(policy)]
    percents = {name: policy.split.weights[name] for name in arms}
    refuse(
        "kserve",
        (policy.split.mode == "sticky", "a sticky split", "use mode: random, or run the router before it"),
        (bool(policy.groups), "groups", "leave them out"),
        (bool(policy.overrides), "overrides", "leave them out"),
        (bool(policy.mirror), "a mirror", "leave it out"),
        (bool(policy.fallback), "a fallback", "leave it out"),
        (any(percent % 1 for percent in percents.values()), "hundredths of a percent", "use whole percents"),
        (percents.get(policy.baseline) in (None, HUNDRED), "all or nothing", "give both sides a share"),
    )
    canaries = [
        {"trafficPercent": int(percents[name]), "predictor": _predictor(name, policy, image)}
        for name in arms
        if name != policy.baseline
    ]
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": resource_name(policy)},
        "spec": {"predictor": _predictor(policy.baseline, policy, image), "canary": canaries},
    }
    return {"inferenceservice.yaml": dump(service)}


def _predictor(name: str, policy: Policy, image: str) -> dict[str, object]:
    artifact = policy.arms[name].artifact
    if not artifact:
        raise UserError(f"kserve starts the arms itself: arm {name} needs an artifact, below {ARTIFACTS}/")
    return {
        # The name by which KServe finds the container that serves.
        "containers": [{"name": "kserve-container", **arm_container(artifact, PORT, image)}],
        "volumes": arm_volumes(),
    }
