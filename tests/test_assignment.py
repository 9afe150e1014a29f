"""Who gets which arm: shares, ramps, groups, testers. That nginx decides the same is test_compile.py's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from engines.errors import UserError
from serve.router.assignment import Assigner, murmur2, user_of
from serve.router.reading import parse_policy
from serve.router.region import open_database
from tests.test_policy import SMALLEST

USERS = [f"user-{number}".encode() for number in range(4000)]


def assigner(weights: str, *, experiment: str = "e", more: str = "") -> Assigner:
    arms = "".join(f'  {name}: {{url: "http://127.0.0.1:80"}}\n' for name in "abc")
    return Assigner(
        parse_policy(
            f"experiment: {experiment}\nbaseline: b\narms:\n{arms}"
            f'split: {{key: "header:x-user-id", weights: {{{weights}}}}}\n{more}'
        )
    )


def arms_of(assign: Assigner, users: Sequence[bytes] = USERS) -> list[str]:
    return [assign({b"x-user-id": user}, "127.0.0.1").arm for user in users]


@pytest.mark.parametrize(
    ("data", "expected"),
    # Austin Appleby's MurmurHash2.cpp, seed 0, compiled; nginx's ngx_murmur_hash2 is the same function.
    [
        (b"", 0),
        (b"ab", 0x1AA14063),
        (b"abc", 0x13577C9B),
        (b"a", 0x92685F5E),
        (b"abcd", 0x26873021),
        (b"Hello, world!", 0x403C1E05),
    ],
)
def test_murmur2(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected


def test_split_holds_its_shares() -> None:
    counts = Counter(arms_of(assigner("a: 10, b: 60, c: 30")))
    for arm, share in {"a": 0.1, "b": 0.6, "c": 0.3}.items():
        assert abs(counts[arm] / len(USERS) - share) < 4 * (share * (1 - share) / len(USERS)) ** 0.5


def test_ramp_is_monotone() -> None:
    before: set[bytes] = set()
    for percent in ("0", "0.01", "1", "5", "10", "25", "33.33", "50", "99.99", "100"):
        assign = assigner(f"a: {percent}, b: {100 - Decimal(percent)}")
        canary = {user for user, arm in zip(USERS, arms_of(assign), strict=True) if arm == "a"}
        assert before <= canary, f"someone left the canary at {percent} %"
        before = canary
    assert before == set(USERS)


def test_the_last_candidate_ramps_without_moving_the_first() -> None:
    first = arms_of(assigner("a: 20, c: 1, b: 79"))
    later = arms_of(assigner("a: 20, c: 50, b: 30"))
    assert [arm == "a" for arm in first] == [arm == "a" for arm in later]


def test_another_experiment_is_another_draw() -> None:
    one = arms_of(assigner("a: 50, b: 50"))
    other = arms_of(assigner("a: 50, b: 50", experiment="f"))
    same = sum(x == y for x, y in zip(one, other, strict=True)) / len(USERS)
    assert 0.45 < same < 0.55


def test_without_a_key_the_address_decides() -> None:
    assign = assigner("a: 50, b: 50")
    addresses = [f"10.0.{high}.{low}" for high in range(4) for low in range(50)]
    arms = [assign({}, address) for address in addresses]
    assert {arm.arm for arm in arms} == {"a", "b"}
    assert arms == [assign({b"x-user-id": b""}, address) for address in addresses]


def test_random_split_is_not_sticky() -> None:
    text = SMALLEST.replace('mode: sticky, key: "header:x-user-id"', "mode: random")
    assign = Assigner(parse_policy(text.replace("int4: 10, fp16: 90", "int4: 50, fp16: 50")))
    counts = Counter(arms_of(assign, [b"same"] * 1000))
    assert 400 < counts["int4"] < 600
    assert assign({}, "::1")[1:] == ("split", b"")


MORE = """\
overrides: {cidr: [127.0.0.2/32, "::1/128"]}
region: {header: x-country}
groups:
  - {header: x-team, values: [qa, QB], arm: c}
  - {cidr: [10.1.0.0/16, "fd00::/8"], arm: a}
  - {region: [DE, FR], arm: c}
"""


@pytest.mark.parametrize(
    ("headers", "address", "arm", "reason"),
    [
        ({b"x-team": b"qa"}, "127.0.0.1", "c", "group"),
        ({b"x-team": b"QB"}, "127.0.0.1", "c", "group"),
        ({b"x-team": b"QA"}, "127.0.0.1", "b", "split"),
        ({b"x-team": b"qa, qa"}, "127.0.0.1", "b", "split"),
        ({}, "10.1.255.255", "a", "group"),
        ({}, "10.2.0.0", "b", "split"),
        ({}, "fd12::1", "a", "group"),
        ({b"x-team": b"qa"}, "10.1.0.1", "c", "group"),
        ({b"x-country": b"FR"}, "127.0.0.1", "c", "group"),
        ({b"x-country": b"fr"}, "127.0.0.1", "b", "split"),
        ({b"x-ab-override": b"a", b"x-team": b"qa"}, "127.0.0.2", "a", "override"),
        ({b"x-ab-override": b"a"}, "::1", "a", "override"),
        ({b"x-ab-override": b"a"}, "127.0.0.1", "b", "split"),
    ],
)
def test_overrides_then_groups_then_split(
    headers: dict[bytes, bytes], address: str, arm: str, reason: str
) -> None:
    assignment = assigner("b: 100", more=MORE)(headers, address)
    assert (assignment.arm, assignment.reason) == (arm, reason)


@pytest.mark.parametrize(
    ("key", "headers", "user", "hashed"),
    [
        ("api-key", {b"authorization": b"Bearer k", b"x-user-id": b"u"}, None, b"Bearer k"),
        ("header:x-user-id", {b"authorization": b"Bearer k", b"x-user-id": b"u"}, None, b"u"),
        ("header:x-header", {b"x-header": b"h"}, None, b"h"),
        ("user", {b"x-user-id": b"u"}, "someone", b"someone"),
        ("user", {b"x-user-id": b"u"}, None, b"::1"),
    ],
)
def test_the_key_of_the_policy_is_what_is_hashed(
    key: str, headers: dict[bytes, bytes], user: str | None, hashed: bytes
) -> None:
    assign = Assigner(parse_policy(SMALLEST.replace("header:x-user-id", key)))
    assert assign.reads_user == (key == "user")
    assert assign(headers, "::1", user)[1:] == ("split", hashed)


def test_the_headers_that_decide_are_known_beforehand() -> None:
    assert assigner("b: 100").wanted == {b"x-user-id"}
    assert assigner("b: 100", more=MORE).wanted == {b"x-user-id", b"x-team", b"x-country", b"x-ab-override"}


@pytest.mark.parametrize(
    ("body", "user"),
    [
        (b'{"user": "u"}', "u"),
        (b'{"user": 5}', None),
        (b"{}", None),
        (b'["user"]', None),
        (b"{", None),
        (b"[" * 100_000, None),
        (b"\xff", None),
    ],
)
def test_the_user_of_a_body(body: bytes, user: str | None) -> None:
    assert user_of(body) == user


def test_a_tester_who_names_no_arm_is_told() -> None:
    with pytest.raises(UserError, match="arms are a, b, c"):
        assigner("b: 100", more=MORE)({b"x-ab-override": b"z"}, "127.0.0.2")


def test_regions_of_a_database(tmp_path: Path) -> None:
    file = tmp_path / "country.mmdb"
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="GeoIP2-Country")
    writer.insert_network(IPSet(["192.0.2.0/24"]), {"country": {"iso_code": "DE"}})
    writer.to_db_file(str(file))
    country = open_database(str(file))
    policy = parse_policy(
        SMALLEST.replace('cidr: ["10.1.0.0/16"]', "region: [DE]") + f'region: {{database: "{file}"}}\n'
    )
    assert Assigner(policy, country)({}, "192.0.2.77").reason == "group"
    assert Assigner(policy, country)({}, "198.51.100.1").reason == "split"


def test_what_is_no_region_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no region database"):
        open_database(str(tmp_path / "none.mmdb"))
    (tmp_path / "text.mmdb").write_text("not a database")
    with pytest.raises(UserError, match="not a GeoIP2 database"):
        open_database(str(tmp_path / "text.mmdb"))
