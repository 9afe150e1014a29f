"""Istio: a VirtualService that splits by chance. It has no sticky split: that is refused."""

from __future__ import annotations

import re
from typing import Any

import yaml

from engines.errors import UserError
from serve.compile.gateway_api import resource_name
from serve.compile.refusals import refuse_all_but_routes
from serve.router.assignment import group_header, group_values, parts
from serve.router.policy import Policy

Json = dict[str, Any]
HOST = re.compile(r"http://([a-z0-9][a-z0-9.-]*):(\d+)")


def istio(policy: Policy, listen: str) -> dict[str, str]:
    """One VirtualService (networking.istio.io/v1) of the host `listen` names; its port is the mesh's own.

    Weights of Istio are whole numbers of any sum: hundredths of a percent are exact.
    """
    refuse_all_but_routes("istio", policy)
    route = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": resource_name(policy)},
        "spec": {
            "hosts": [listen.rpartition(":")[0]],
            "http": [*_groups(policy), _rule(parts(policy), policy)],
        },
    }
    return {"virtualservice.yaml": yaml.safe_dump(route, sort_keys=False)}


def _groups(policy: Policy) -> list[Json]:
    rules = []
    for group in policy.groups:
        header = group_header(group, policy)
        matches = [{"headers": {header: {"exact": value}}} for value in group_values(group)]
        rules.append({"match": matches, **_rule([(1, group.arm)], policy)})
    return rules


def _rule(shares: list[tuple[int, str]], policy: Policy) -> Json:
    rule: Json = {"route": [_to(name, share, policy) for share, name in shares]}
    if policy.mirror and [policy.mirror.arm] != [name for _, name in shares]:
        share = {"value": float(policy.mirror.percent)}
        rule["mirrors"] = [{"destination": _destination(policy.mirror.arm, policy), "percentage": share}]
    return rule


def _to(name: str, share: int, policy: Policy) -> Json:
    told = {"x-ab-arm": name, "x-artifact-digest": policy.arms[name].digest}
    headers = {"response": {"set": {key: value for key, value in told.items() if value}}}
    return {"destination": _destination(name, policy), "weight": share, "headers": headers}


def _destination(name: str, policy: Policy) -> Json:
    found = HOST.fullmatch(policy.arms[name].url or "")
    if not found:
        raise UserError(
            f"istio cannot express arm {name} at {policy.arms[name].url}; expected http://SERVICE:PORT"
        )
    return {"host": found[1], "port": {"number": int(found[2])}}
