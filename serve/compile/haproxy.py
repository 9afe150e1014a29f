"""HAProxy: the sticky hash in Lua, which its own hashes cannot equal; groups and overrides as rules."""

from __future__ import annotations

from itertools import accumulate

from serve.compile.lua import XOR_LUA53, split_function
from serve.compile.refusals import (
    arms_without_url,
    key_in_body,
    refuse,
    region_database,
    two_waiting_times,
)
from serve.router.assignment import group_header, group_values, headers_read, key_header, parts
from serve.router.policy import Group, Policy


def haproxy(policy: Policy, listen: str) -> dict[str, str]:
    """haproxy.cfg and, for a sticky split, ab.lua beside it; for HAProxy 2.6 or newer with Lua."""
    refuse(
        "haproxy",
        arms_without_url(policy),
        key_in_body(policy),
        region_database(policy),
        two_waiting_times(policy),
        (policy.mirror is not None, "a mirror", "leave it out, or mirror with nginx or envoy"),
    )
    sticky = policy.split.mode == "sticky"
    limits = policy.limits
    lines = [
        f"# Experiment {policy.experiment}; written by `python -m serve compile`. Start it in this folder.",
        "global",
        *(("    lua-load ab.lua",) if sticky else ()),
        "",
        "defaults",
        "    mode http",
        "    option http-no-delay",
        f"    timeout client {_ms(limits.stall_s)}",
        f"    timeout http-request {_ms(limits.header_s)}",
        f"    timeout http-keep-alive {_ms(limits.keepalive_s)}",
        "    timeout queue 1s",
        "",
        "frontend ab",
        f"    bind {listen}",
        *(
            f"    {line}"
            for line in (*_duplicates(policy), *_split(policy), *_groups(policy), *_testers(policy))
        ),
        "    use_backend %[var(txn.ab_arm)]",
        *(line for name in policy.arms for line in ("", *_backend(name, policy))),
    ]
    files = {"haproxy.cfg": "\n".join(lines) + "\n"}
    if sticky:
        register = 'core.register_converters("ab_split", ab_split)\n'
        files["ab.lua"] = split_function(policy, XOR_LUA53) + register
    return files


def _duplicates(policy: Policy) -> list[str]:
    """A repeated header has one value for the router and many for HAProxy."""
    return [
        f"http-request deny deny_status 400 if {{ req.fhdr_cnt({name}) gt 1 }}"
        for name in headers_read(policy)
    ]


def _split(policy: Policy) -> list[str]:
    shares = parts(policy)
    if policy.split.mode == "sticky":
        return [
            f"http-request set-var(txn.ab_key) req.fhdr({key_header(policy).decode()})",
            "http-request set-var(txn.ab_key) src unless { var(txn.ab_key) -m len 1: }",
            "http-request set-var(txn.ab_arm) var(txn.ab_key),lua.ab_split",
        ]
    cuts = accumulate(share for share, _ in shares[:-1])
    chosen = [
        f"http-request set-var(txn.ab_arm) str({name}) if {{ var(txn.ab_chance) -m int lt {cut} }}"
        for cut, (_, name) in zip(cuts, shares, strict=False)
    ]
    return [
        "http-request set-var(txn.ab_chance) rand(10000)",
        f"http-request set-var(txn.ab_arm) str({shares[-1][1]})",
        *reversed(chosen),
    ]


def _groups(policy: Policy) -> list[str]:
    """The last rule that holds decides, so the first group comes last."""
    return [
        f"http-request set-var(txn.ab_arm) str({group.arm}) if {{ {_condition(group, policy)} }}"
        for group in reversed(policy.groups)
    ]


def _condition(group: Group, policy: Policy) -> str:
    if group.cidr:
        return "src " + " ".join(map(str, group.cidr))
    return f"req.fhdr({group_header(group, policy)}) -m str {' '.join(group_values(group))}"


def _testers(policy: Policy) -> list[str]:
    if not policy.overrides:
        return []
    header = f"req.fhdr({policy.overrides.header})"
    tester = f"{{ src {' '.join(map(str, policy.overrides.cidr))} }} {{ {header} -m found }}"
    known = f"{{ {header} -m str {' '.join(policy.arms)} }}"
    return [
        f"http-request deny deny_status 400 if {tester} !{known}",
        f"http-request set-var(txn.ab_arm) {header} if {tester}",
    ]


def _backend(name: str, policy: Policy) -> list[str]:
    arm, health = policy.arms[name], policy.health
    servers = [name, *(spare for spare in policy.fallback if spare != name)]
    check = f"check inter {_ms(health.interval_s)} fall {health.failures} rise 1"
    return [
        f"backend {name}",
        f"    timeout connect {_ms(arm.timeouts.connect_s)}",
        f"    timeout server {_ms(arm.timeouts.idle_s)}",
        f"    timeout check {_ms(health.timeout_s)}",
        f"    option httpchk GET {health.path}",
        "    http-response set-header x-ab-arm %[srv_name]",
        *(
            f"    http-response set-header x-artifact-digest {policy.arms[server].digest} "
            f"if {{ srv_name {server} }}"
            for server in servers
            if policy.arms[server].digest
        ),
        *(
            f"    server {server} {(policy.arms[server].url or '').removeprefix('http://')} "
            f"maxconn {policy.arms[server].max_requests} {check}{' backup' if server != name else ''}"
            for server in servers
        ),
    ]


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
