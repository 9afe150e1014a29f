"""nginx: split_clients is the router's own hash; maps put overrides and groups before it."""

from __future__ import annotations

import re

from serve.compile.refusals import (
    arms_without_url,
    key_in_body,
    refuse,
    region_database,
    timeouts_by_arm,
    two_waiting_times,
)
from serve.router.assignment import group_header, group_values, key_header, parts
from serve.router.policy import Policy


def nginx(policy: Policy, listen: str) -> dict[str, str]:
    """One nginx.conf for nginx 1.23 or newer, which joins repeated headers, with PCRE."""
    refuse(
        "nginx",
        arms_without_url(policy),
        key_in_body(policy),
        region_database(policy),
        timeouts_by_arm(policy),
        two_waiting_times(policy),
    )
    lines = [*_split(policy), *_groups(policy), *_overrides(policy), *_digests(policy), *_arms(policy)]
    http = "\n".join(f"    {line}" for line in (*lines, *_server(policy, listen)))
    return {
        "nginx.conf": f"# Experiment {policy.experiment}; written by `python -m serve compile`.\n"
        f"worker_processes auto;\nevents {{ worker_connections 16384; }}\nhttp {{\n{http}\n}}\n"
    }


def _variable(header: str) -> str:
    return "$http_" + header.replace("-", "_")


def _shares(shares: list[tuple[int, str]]) -> list[str]:
    return [f"    {share / 100:.2f}% {name};" for share, name in shares[:-1]] + [f"    * {shares[-1][1]};"]


def _split(policy: Policy) -> list[str]:
    shares = _shares(parts(policy))
    if policy.split.mode == "random":
        return ['split_clients "split$request_id" $ab_split {', *shares, "}"]
    key = _variable(key_header(policy).decode())
    return [
        f'map {key} $ab_key {{ "" $remote_addr; default {key}; }}',
        f'split_clients "{policy.experiment}:$ab_key" $ab_split {{',
        *shares,
        "}",
    ]


def _grouped(policy: Policy) -> str:
    """The variable that holds the arm after groups and split."""
    return "$ab_group_1" if policy.groups else "$ab_split"


def _groups(policy: Policy) -> list[str]:
    """Each group decides or leaves it to the next one."""
    lines: list[str] = []
    for number, group in enumerate(policy.groups, 1):
        decides = f"$ab_group_{number}"
        otherwise = f"$ab_group_{number + 1}" if number < len(policy.groups) else "$ab_split"
        if group.cidr:
            lines.append(f"geo $ab_network_{number} {{ default 0; {_networks(group.cidr)} }}")
            lines.append(f"map $ab_network_{number} {decides} {{ 1 {group.arm}; default {otherwise}; }}")
        else:
            lines += [f"map {_variable(group_header(group, policy))} {decides} {{"]
            lines += [f"    {_exactly(value)} {group.arm};" for value in group_values(group)]
            lines += [f"    default {otherwise};", "}"]
    return lines


def _exactly(value: str) -> str:
    """A plain string would be compared without regard to case."""
    return f'"~^{re.escape(value)}$"'


def _networks(networks: tuple[object, ...]) -> str:
    return " ".join(f"{network} 1;" for network in networks)


def _overrides(policy: Policy) -> list[str]:
    if not policy.overrides:
        return [f"map 1 $ab_arm {{ default {_grouped(policy)}; }}"]
    return [
        f"geo $ab_tester {{ default 0; {_networks(policy.overrides.cidr)} }}",
        f'map "$ab_tester{_variable(policy.overrides.header)}" $ab_arm {{',
        *(f"    {_exactly('1' + name)} {name};" for name in policy.arms),
        '    "~^1." "";  # no such arm: refused below',
        f"    default {_grouped(policy)};",
        "}",
    ]


def _digests(policy: Policy) -> list[str]:
    digests = [f'    {_exactly(name)} "{arm.digest}";' for name, arm in policy.arms.items() if arm.digest]
    return ["map $ab_arm $ab_digest {", *digests, '    default "";', "}"]


def _arms(policy: Policy) -> list[str]:
    lines: list[str] = []
    for name, arm in policy.arms.items():
        address = (arm.url or "").removeprefix("http://")
        lines += [f"upstream {name} {{", f"    zone {name} 64k;"]
        lines += [f"    server {address} max_conns={arm.max_requests};", "    keepalive 64;", "}"]
    return lines


def _server(policy: Policy, listen: str) -> list[str]:
    limits, timeouts = policy.limits, next(iter(policy.arms.values())).timeouts
    buffered = "on" if policy.fallback or policy.mirror else "off"  # a second arm needs the body again
    mirror = ["mirror /ab_mirror;"] if policy.mirror and policy.mirror.percent else []
    return [
        *(_mirror_share(policy) if mirror else ()),
        "server {",
        f"    listen {listen} backlog=4096;",
        f"    client_header_timeout {_seconds(limits.header_s)};",
        f"    client_body_timeout {_seconds(limits.stall_s)};",
        f"    send_timeout {_seconds(limits.stall_s)};",
        f"    keepalive_timeout {_seconds(limits.keepalive_s)};",
        f"    client_max_body_size {limits.body_bytes};",
        f"    large_client_header_buffers 4 {limits.header_bytes};",
        "    proxy_http_version 1.1;",
        '    proxy_set_header Connection "";',
        "    proxy_buffering off;",
        f"    proxy_request_buffering {buffered};",
        f"    proxy_connect_timeout {_seconds(timeouts.connect_s)};",
        f"    proxy_read_timeout {_seconds(timeouts.idle_s)};",
        "    proxy_hide_header x-ab-arm;",
        "    recursive_error_pages on;",
        "    location / {",
        '        if ($ab_arm = "") { return 400; }',
        *(f"        {line}" for line in mirror),
        *(f"        {line}" for line in _pass("$ab_arm", "$ab_digest", 0, policy)),
        "    }",
        *(
            line
            for turn, name in enumerate(policy.fallback, 1)
            for line in (
                f"    location @ab_fallback_{turn} {{",
                *(f"        {line}" for line in _pass(name, policy.arms[name].digest or "", turn, policy)),
                "    }",
            )
        ),
        *(_mirror_location() if mirror else ()),
        "}",
    ]


def _pass(arm: str, digest: str, turn: int, policy: Policy) -> list[str]:
    after = [f"error_page 502 = @ab_fallback_{turn + 1};"] if turn < len(policy.fallback) else []
    return [
        f"add_header x-ab-arm {arm} always;",
        f'add_header x-artifact-digest "{digest}" always;',
        *after,
        f"proxy_pass http://{arm};",
    ]


def _mirror_share(policy: Policy) -> list[str]:
    assert policy.mirror
    share = int(policy.mirror.percent * 100)
    rest = [(10_000 - share, '""')] if share < 10_000 else []
    return [
        'split_clients "mirror$request_id" $ab_mirror {',
        *_shares([(share, policy.mirror.arm), *rest]),
        "}",
    ]


def _mirror_location() -> list[str]:
    return [
        "    location = /ab_mirror {",
        "        internal;",
        '        if ($ab_mirror = "") { return 204; }',
        "        if ($ab_mirror = $ab_arm) { return 204; }",
        "        proxy_pass http://$ab_mirror$request_uri;",
        "    }",
    ]


def _seconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
