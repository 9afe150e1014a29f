"""Envoy: a Lua filter decides with the router's hash and names the arm in a header that routes follow."""

from __future__ import annotations

from typing import Any

import yaml

from serve.compile.lua import XOR_LUAJIT, split_function
from serve.compile.refusals import (
    Refusal,
    arms_without_url,
    key_in_body,
    refuse,
    region_database,
    two_waiting_times,
)
from serve.router.assignment import group_header, group_values, headers_read, key_header, parts
from serve.router.policy import Group, Policy

HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
Json = dict[str, Any]


def envoy(policy: Policy, listen: str) -> dict[str, str]:
    """One static envoy.yaml, for Envoy 1.30 or newer."""
    refuse(
        "envoy",
        arms_without_url(policy),
        key_in_body(policy),
        region_database(policy),
        two_waiting_times(policy),
        _ipv6(policy),
        (bool(policy.fallback), "a fallback that tells which arm answered", "leave fallback out"),
    )
    document = {
        "static_resources": {
            "listeners": [_listener(policy, listen)],
            "clusters": [_cluster(name, policy) for name in policy.arms],
        }
    }
    head = f"# Experiment {policy.experiment}; written by `python -m serve compile`.\n"
    return {"envoy.yaml": head + yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120)}


def _ipv6(policy: Policy) -> Refusal:
    networks = [network for group in policy.groups for network in group.cidr]
    networks += policy.overrides.cidr if policy.overrides else ()
    return any(network.version == 6 for network in networks), "IPv6 networks", "use IPv4 networks or a header"


def _listener(policy: Policy, listen: str) -> Json:
    limits = policy.limits
    lua = {
        "name": "envoy.filters.http.lua",
        "typed_config": {
            "@type": _type("envoy.extensions.filters.http.lua.v3.Lua"),
            "default_source_code": {"inline_string": decision(policy)},
        },
    }
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": _type("envoy.extensions.filters.http.router.v3.Router")},
    }
    manager = {
        "@type": _type(HCM),
        "stat_prefix": "ab",
        "request_headers_timeout": _seconds(limits.header_s),
        "max_request_headers_kb": max(1, min(8192, limits.header_bytes // 1024)),
        "common_http_protocol_options": {"idle_timeout": _seconds(limits.keepalive_s)},
        "http_filters": [lua, router],
        "route_config": {"virtual_hosts": [{"name": "ab", "domains": ["*"], "routes": _routes(policy)}]},
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {"name": "ab", "address": _address(listen), "filter_chains": [{"filters": filters}]}


def _routes(policy: Policy) -> list[Json]:
    named: list[Json] = [
        {
            "match": {"prefix": "/", "headers": [{"name": "x-ab-arm", "string_match": {"exact": name}}]},
            "route": {"cluster": name, **_action(name, policy)},
            "response_headers_to_add": _told(name, policy),
        }
        for name in policy.arms
    ]
    if policy.split.mode == "sticky":
        return named
    clusters = [
        {"name": name, "weight": share, "response_headers_to_add": _told(name, policy)}
        for share, name in parts(policy)
    ]
    by_chance: Json = {"weighted_clusters": {"clusters": clusters}, **_action("", policy)}
    return [*named, {"match": {"prefix": "/"}, "route": by_chance}]


def _action(name: str, policy: Policy) -> Json:
    idle = policy.arms[name or policy.baseline].timeouts.idle_s
    action: Json = {"timeout": "0s", "idle_timeout": _seconds(idle)}
    if policy.mirror and policy.mirror.arm != name:
        share = {"numerator": int(policy.mirror.percent * 100), "denominator": "TEN_THOUSAND"}
        action["request_mirror_policies"] = [
            {"cluster": policy.mirror.arm, "runtime_fraction": {"default_value": share}}
        ]
    return action


def _told(name: str, policy: Policy) -> list[Json]:
    told = {"x-ab-arm": name, "x-artifact-digest": policy.arms[name].digest}
    return [
        {"header": {"key": key, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for key, value in told.items()
        if value
    ]


def _cluster(name: str, policy: Policy) -> Json:
    arm = policy.arms[name]
    address = _address((arm.url or "").removeprefix("http://"))
    endpoint = {"lb_endpoints": [{"endpoint": {"address": address}}]}
    # A request is pending until its connection to the arm is there: 1,024 of them by default, and more are
    # refused, whatever max_requests says.
    limits = ("max_connections", "max_pending_requests", "max_requests")
    return {
        "name": name,
        "type": "STRICT_DNS",
        "connect_timeout": _seconds(arm.timeouts.connect_s),
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, arm.max_requests)]},
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
    }


def decision(policy: Policy) -> str:
    """The Lua filter: x-ab-arm names the arm before Envoy looks for a route."""
    sticky = policy.split.mode == "sticky"
    key = key_header(policy).decode()
    rules = [line for group in policy.groups for line in _rule(group, policy)]
    split = f'ab_split(value(headers, "{key}") or ip)' if sticky else "nil"
    return "\n".join(
        (
            split_function(policy, XOR_LUAJIT) if sticky else "",
            LIBRARY,
            "local function decide(headers, ip)",
            *_testers(policy),
            *rules,
            f"  return {split}",
            "end",
            "",
            "function envoy_on_request(handle)",
            "  local headers = handle:headers()",
            *(
                f'  if headers:getNumValues("{name}") > 1 then return refuse(handle, "repeated {name}") end'
                for name in headers_read(policy)
            ),
            "  local address = handle:streamInfo():downstreamDirectRemoteAddress()",
            '  local arm = decide(headers, address:match("^%[?(.-)%]?:%d+$"))',
            '  if arm == "" then return refuse(handle, "no such arm") end',
            '  headers:remove("x-ab-arm")',
            '  if arm then headers:add("x-ab-arm", arm) end',
            "  handle:clearRouteCache()",
            "end",
            "",
        )
    )


LIBRARY = """
local function refuse(handle, why)
  handle:respond({[":status"] = "400", ["content-type"] = "text/plain"}, why)
end

local function value(headers, name)
  local found = headers:get(name)
  if found ~= "" then return found end
end

-- whether an IPv4 address is in the network of `size` addresses that begins with `first`
local function within(ip, first, size)
  local a, b, c, d = ip:match("^(%d+)%.(%d+)%.(%d+)%.(%d+)$")
  if not a then return false end
  local number = ((a * 256 + b) * 256 + c) * 256 + d
  return number >= first and number < first + size
end
"""


def _within(networks: tuple[Any, ...]) -> str:
    return " or ".join(
        f"within(ip, {int(network.network_address)}, {network.num_addresses})" for network in networks
    )


def _rule(group: Group, policy: Policy) -> list[str]:
    if group.cidr:
        return [f'  if {_within(group.cidr)} then return "{group.arm}" end']
    header = group_header(group, policy)
    return [
        f'  if value(headers, "{header}") == "{value}" then return "{group.arm}" end'
        for value in group_values(group)
    ]


def _testers(policy: Policy) -> list[str]:
    if not policy.overrides:
        return []
    known = ", ".join(f'["{name}"] = "{name}"' for name in policy.arms)
    return [
        f'  local wish = value(headers, "{policy.overrides.header}")',
        f"  if wish and ({_within(policy.overrides.cidr)}) then",
        f'    return ({{{known}}})[wish] or ""',
        "  end",
    ]


def _address(where: str) -> Json:
    host, _, port = where.rpartition(":")
    return {"socket_address": {"address": host.strip("[]"), "port_value": int(port)}}


def _seconds(seconds: float) -> str:
    return f"{seconds:.3f}s"


def _type(name: str) -> str:
    return f"type.googleapis.com/{name}"


class _Dumper(yaml.SafeDumper):
    """Lines of Lua stay lines."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
