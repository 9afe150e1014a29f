"""Who gets which arm: pure functions of the policy and the request.

The sticky hash is that of nginx's split_clients (ngx_http_split_clients_module.c): MurmurHash2 of salt and
key against cumulative cut points. The baseline's part is last, so a growing candidate only takes from it.
"""

from __future__ import annotations

import json
import random
import struct
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import lru_cache
from ipaddress import ip_address
from itertools import accumulate
from typing import NamedTuple

from engines.errors import UserError
from serve.router.policy import Group, Policy

MASK = 0xFFFFFFFF
M = 0x5BD1E995


class Assignment(NamedTuple):
    """An arm, why it was chosen (override, group or split), and the key that was hashed, if one was."""

    arm: str
    reason: str
    key: bytes = b""


def murmur2(data: bytes) -> int:
    """MurmurHash2, 32 bit, seed 0, as nginx computes it."""
    words, rest = divmod(len(data), 4)
    h = len(data) & MASK
    for k in struct.unpack_from(f"<{words}I", data):
        k = k * M & MASK
        h = (h * M & MASK) ^ ((k ^ k >> 24) * M & MASK)
    if rest:
        h = (h ^ int.from_bytes(data[-rest:], "little")) * M & MASK
    h = (h ^ h >> 13) * M & MASK
    return h ^ h >> 15


def parts(policy: Policy) -> list[tuple[int, str]]:
    """Hundredths of a percent by arm, as the hash sees them: candidates, then the baseline; none is 0."""
    weights = policy.split.weights
    order = [name for name in weights if name != policy.baseline] + [policy.baseline]
    return [(int(weights[name] * 100), name) for name in order if weights.get(name)]


def cut_points(shares: list[tuple[int, str]]) -> list[int]:
    """Upper ends of every part but the last, which takes the rest. Rounded one by one, as nginx does."""
    return list(accumulate(share * MASK // 10_000 for share, _ in shares[:-1]))


class Assigner:
    """A policy made ready to decide. `wanted` are the headers it reads, in lower case."""

    def __init__(self, policy: Policy, country: Callable[[str], str] | None = None) -> None:
        shares = parts(policy)
        self._arms = [name for _, name in shares]
        self._cuts = cut_points(shares)
        self._salt = f"{policy.experiment}:".encode()
        self._random = policy.split.mode == "random"
        self._key_header = key_header(policy)
        self._groups = [(group.arm, _matcher(group, policy, country)) for group in policy.groups]
        self._overrides = policy.overrides
        self._override_header = policy.overrides.header.encode() if policy.overrides else b""
        self._is_tester = _within(policy.overrides.cidr if policy.overrides else ())
        self._known = policy.arms.keys()
        self.wanted = frozenset(name.encode() for name in headers_read(policy))
        self.reads_user = policy.split.key == "user"

    def __call__(self, headers: Mapping[bytes, bytes], address: str, user: str | None = None) -> Assignment:
        """Decides for one request by its wanted headers, client address and, where read, OpenAI user.

        A request without the key is split by its address. Raises UserError when a tester names no arm.
        """
        if self._override_header in headers and self._is_tester(address):
            arm = headers[self._override_header].decode("latin-1")
            if arm not in self._known:
                raise UserError(
                    f"{self._override_header.decode()} names no arm; arms are {', '.join(self._known)}"
                )
            return Assignment(arm, "override")
        for arm, matches in self._groups:
            if matches(headers, address):
                return Assignment(arm, "group")
        if self._random:
            return Assignment(self._arms[bisect_right(self._cuts, random.getrandbits(32))], "split")
        key = user.encode() if user else headers.get(self._key_header) or address.encode()
        return Assignment(self._arms[bisect_right(self._cuts, murmur2(self._salt + key))], "split", key)


def user_of(body: bytes) -> str | None:
    """The `user` of an OpenAI request."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    user = document.get("user") if isinstance(document, dict) else None
    return user if isinstance(user, str) else None


def key_header(policy: Policy) -> bytes:
    """The header that holds the sticky key, or nothing."""
    key = policy.split.key or ""
    return b"authorization" if key == "api-key" else key.partition("header:")[2].encode()


def headers_read(policy: Policy) -> list[str]:
    """The headers that decide, each once."""
    names = [key_header(policy).decode(), *(group.header for group in policy.groups)]
    names += [policy.region.header] if policy.region else []
    names += [policy.overrides.header] if policy.overrides else []
    return [name for name in dict.fromkeys(names) if name]


def group_header(group: Group, policy: Policy) -> str:
    """The header that a group without networks is told by: its own, or that of the country."""
    return group.header or (policy.region.header if policy.region else None) or ""


def group_values(group: Group) -> tuple[str, ...]:
    """What that header holds."""
    return group.values or group.region


Matcher = Callable[[Mapping[bytes, bytes], str], bool]


def _matcher(group: Group, policy: Policy, country: Callable[[str], str] | None) -> Matcher:
    if group.cidr:
        within = _within(group.cidr)
        return lambda headers, address: within(address)
    if group.region and policy.region and policy.region.database:
        assert country, "regions of a database need its lookup"
        return lambda headers, address: country(address) in group.region
    wanted, values = group_header(group, policy).encode(), {value.encode() for value in group_values(group)}
    return lambda headers, address: headers.get(wanted) in values


def _within(networks: tuple[object, ...]) -> Callable[[str], bool]:
    # A connection asks again with each of its requests.
    @lru_cache(maxsize=65_536)
    def within(address: str) -> bool:
        ip = ip_address(address)
        return any(ip in network for network in networks)  # type: ignore[operator]

    return within
