"""Kubernetes Gateway API: an HTTPRoute that splits by chance. It has no sticky split: that is refused."""

from __future__ import annotations

import re
from typing import Any

import yaml

from engines.errors import UserError
from serve.compile.refusals import refuse, refuse_all_but_routes
from serve.router.assignment import group_header, group_values, parts
from serve.router.policy import Policy

Json = dict[str, Any]
SERVICE = re.compile(r"http://([a-z]([-a-z0-9]*[a-z0-9])?)(?:\.([a-z0-9-]+)(?:\.svc.*)?)?:(\d+)")


def gateway_api(policy: Policy, listen: str) -> dict[str, str]:
    """One HTTPRoute (gateway.networking.k8s.io/v1), attached to a Gateway named `ab`.

    Ports, timeouts and limits are the Gateway's own, so `listen` is not used.
    """
    refuse_all_but_routes("gateway-api", policy)
    refuse(  # what an HTTPRoute holds at most, by its schema
        "gateway-api",
        (len(policy.groups) > 15, "more than 15 groups", "join some"),
        (
            any(len(group_values(group)) > 64 for group in policy.groups),
            "a group of more than 64 values",
            "split it",
        ),
        (len(policy.split.weights) > 16, "more than 16 arms", "leave some out"),
    )
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": resource_name(policy)},
        "spec": {"parentRefs": [{"name": "ab"}], "rules": [*_groups(policy), _split(policy)]},
    }
    return {"httproute.yaml": yaml.safe_dump(route, sort_keys=False)}


def resource_name(policy: Policy) -> str:
    """The experiment's name, as Kubernetes takes names."""
    return re.sub(r"[^a-z0-9-]", "-", policy.experiment.lower())


def _groups(policy: Policy) -> list[Json]:
    rules = []
    for group in policy.groups:
        header = group_header(group, policy)
        matches = [
            {"headers": [{"type": "Exact", "name": header, "value": value}]} for value in group_values(group)
        ]
        rules.append({"matches": matches, **_rule([(1, group.arm)], policy)})
    return rules


def _split(policy: Policy) -> Json:
    return _rule(parts(policy), policy)


def _rule(shares: list[tuple[int, str]], policy: Policy) -> Json:
    rule: Json = {"backendRefs": [_backend(name, share, policy) for share, name in shares]}
    if policy.mirror and [policy.mirror.arm] != [name for _, name in shares]:
        fraction = {"numerator": int(policy.mirror.percent * 100), "denominator": 10_000}
        copy = {"backendRef": _service(policy.mirror.arm, policy), "fraction": fraction}
        rule["filters"] = [{"type": "RequestMirror", "requestMirror": copy}]
    return rule


def _backend(name: str, share: int, policy: Policy) -> Json:
    told = {"x-ab-arm": name, "x-artifact-digest": policy.arms[name].digest}
    headers = [{"name": key, "value": value} for key, value in told.items() if value]
    modifier = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": headers}}
    return {**_service(name, policy), "weight": share, "filters": [modifier]}


def _service(name: str, policy: Policy) -> Json:
    url = policy.arms[name].url or ""
    found = SERVICE.fullmatch(url)
    if not found:
        raise UserError(
            f"gateway-api cannot express arm {name} at {url}; expected http://SERVICE.NAMESPACE:PORT"
        )
    service, _, namespace, port = found.groups()
    return {"name": service, **({"namespace": namespace} if namespace else {}), "port": int(port)}
