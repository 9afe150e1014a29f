"""The policy: arms, who gets which, and what a request may cost. Checked whole before it is used."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

# Names go into configurations, header values and metric labels: nothing in them ever needs quoting.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.@:/+=-]{1,256}$")]
Region = Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")]
Percent = Annotated[Decimal, Field(ge=0, le=100, decimal_places=2)]
Seconds = PositiveFloat

HUNDRED = Decimal(100)


def _url(url: str) -> str:
    found = re.fullmatch(r"http://(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\]):(\d{1,5})/?", url)
    if not found or not 0 < int(found[1]) < 65_536:
        raise ValueError("expected http://HOST:PORT")
    return url.rstrip("/")


def _key(key: str) -> str:
    if key not in ("api-key", "user") and not re.fullmatch(r"header:[a-z0-9-]{1,64}", key):
        raise ValueError("expected header:NAME in lower case, api-key, or user")
    return key


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Timeouts(Section):
    connect_s: Seconds = Field(3.0, description="Until a connection stands.")
    first_byte_s: Seconds = Field(120.0, description="From the sent request to the first byte of the answer.")
    idle_s: Seconds = Field(120.0, description="Between two pieces of an answer.")


class Arm(Section):
    url: Annotated[str, AfterValidator(_url)] | None = Field(
        None, description="http://HOST:PORT of a running arm."
    )
    artifact: str | None = Field(None, description="Folder of the built variant that the arm serves.")
    digest: str | None = Field(
        None, pattern=r"^[A-Za-z0-9:+._-]{1,128}$", description="Of the artifact, told in x-artifact-digest."
    )
    timeouts: Timeouts = Field(Timeouts(), description="How long the arm may take.")
    max_requests: PositiveInt = Field(1024, description="In flight at once; more go to the fallback.")

    @model_validator(mode="after")
    def _somewhere(self) -> Arm:
        if not (self.url or self.artifact):
            raise ValueError("an arm needs a url or an artifact")
        return self

    @cached_property
    def address(self) -> tuple[str, int]:
        """Host and port of the url."""
        host, _, port = (self.url or "").removeprefix("http://").rpartition(":")
        return host.strip("[]"), int(port)


class Split(Section):
    mode: Literal["sticky", "random"] = Field("sticky", description="By the hash of a key, or by chance.")
    key: Annotated[str, AfterValidator(_key)] | None = Field(
        None, description="What stays with its arm: header:NAME, api-key, or user (the OpenAI body field)."
    )
    weights: dict[Name, Percent] = Field(description="Percent by arm, two decimals, 100 together.")


class Group(Section):
    arm: Name = Field(description="Where its requests go.")
    header: HeaderName | None = Field(None, description="Requests with one of `values` in this header.")
    values: tuple[HeaderValue, ...] = Field((), description="Of the header, compared exactly.")
    region: tuple[Region, ...] = Field((), description="Requests from these countries, ISO 3166-1 alpha-2.")
    cidr: tuple[IPvAnyNetwork, ...] = Field((), description="Requests from these networks.")

    @model_validator(mode="after")
    def _one_kind(self) -> Group:
        if sum((bool(self.header), bool(self.region), bool(self.cidr))) != 1:
            raise ValueError("a group is one of header with values, region, or cidr")
        if bool(self.header) != bool(self.values):
            raise ValueError("header and values go together")
        return self


class RegionSource(Section):
    header: HeaderName | None = Field(None, description="Header in which a proxy in front tells the country.")
    database: str | None = Field(None, description="GeoIP2 country database (.mmdb).")

    @model_validator(mode="after")
    def _one_source(self) -> RegionSource:
        if bool(self.header) == bool(self.database):
            raise ValueError("regions come from one of header or database")
        return self


class Overrides(Section):
    header: HeaderName = Field("x-ab-override", description="In which a tester names an arm.")
    cidr: tuple[IPvAnyNetwork, ...] = Field(min_length=1, description="From where it is listened to.")


class Mirror(Section):
    arm: Name = Field(description="Gets copies of requests; its answers are measured and thrown away.")
    percent: Percent = Field(description="Share of requests copied.")


class Health(Section):
    path: str = Field("/health", pattern=r"^/[!-~]*$", description="Asked of every arm; 200 is healthy.")
    interval_s: Seconds = Field(5.0, description="Between two questions.")
    timeout_s: Seconds = Field(2.0, description="Longer is a failure.")
    failures: PositiveInt = Field(2, description="In a row, until an arm is unhealthy; one success mends it.")


class Breaker(Section):
    failures: PositiveInt = Field(5, description="In a row, until an arm gets no more requests.")
    open_s: Seconds = Field(10.0, description="Until one request at a time tries it again.")


class Limits(Section):
    header_bytes: PositiveInt = Field(16_384, description="Of a request's head; more is 431.")
    header_s: Seconds = Field(10.0, description="Until a request's head is here; longer is 408.")
    body_bytes: PositiveInt = Field(33_554_432, description="Of a request's body; more is 413.")
    stall_s: Seconds = Field(30.0, description="Between two pieces a client sends (408) or takes (closed).")
    keepalive_s: Seconds = Field(75.0, description="Until an idle client connection is closed.")
    connections: PositiveInt = Field(20_000, description="Of clients at once; more are closed at once.")
    buffer_bytes: PositiveInt = Field(
        1_048_576,
        description="Of a body kept for a retry, a mirror or its `user`; larger ones pass unkept.",
    )


class Rollout(Section):
    arm: Name = Field(description="The candidate, which grows at the baseline's cost.")
    steps: tuple[Percent, ...] = Field(
        tuple(map(Decimal, (1, 5, 10, 25, 50, 100))), min_length=1, description="Its percent, rising."
    )
    dwell_s: Seconds = Field(600.0, description="At each step, at least.")
    min_requests: PositiveInt = Field(500, description="Of the candidate at each step, at least.")
    error_points: PositiveFloat = Field(2.0, description="More failures than the baseline that are caught.")
    latency_ratio: float = Field(1.15, gt=1, description="Of ttft and e2e to the baseline's that is caught.")
    gate: str | None = Field(
        None, description="gate.json that must say PASS before 100 %; default the artifact's own."
    )

    @model_validator(mode="after")
    def _rising(self) -> Rollout:
        if self.steps[0] == 0 or list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps rise from above 0")
        return self


class Policy(Section):
    experiment: Name = Field(description="Salt of the sticky hash: another name, another assignment.")
    baseline: Name = Field(description="The arm all others are compared with.")
    arms: dict[Name, Arm] = Field(min_length=1, description="Arms by name.")
    split: Split = Field(description="Who gets which arm when no group says.")
    groups: tuple[Group, ...] = Field((), description="First match wins, before the split.")
    region: RegionSource | None = Field(None, description="How a request's country is known.")
    overrides: Overrides | None = Field(None, description="Testers who choose their arm, before the groups.")
    mirror: Mirror | None = Field(None, description="Copies of requests to one more arm.")
    fallback: tuple[Name, ...] = Field((), description="Arms to try, in order, when the assigned one cannot.")
    rollout: Rollout | None = Field(None, description="How one arm grows, and what stops it.")
    retries: int = Field(1, ge=0, le=5, description="Within the arm, before its first byte.")
    health: Health = Field(Health(), description="Active health checks.")
    breaker: Breaker = Field(Breaker(), description="When an arm is left alone.")
    limits: Limits = Field(Limits(), description="What a client may ask of the router.")

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        for where, problem in _problems(self):
            # Raised with a place inside the policy, so that the reader can name its line.
            detail = InitErrorDetails(
                type=PydanticCustomError("policy", "{m}", {"m": problem}), loc=where, input=None
            )
            raise ValidationError.from_exception_data("Policy", [detail])
        return self


Place = tuple[str | int, ...]


def _problems(policy: Policy) -> Iterator[tuple[Place, str]]:
    yield from _missing_arms(policy)
    total = sum(policy.split.weights.values(), Decimal(0))
    if total != HUNDRED:
        yield ("split", "weights"), f"weights sum to {total.normalize():f} %, expected 100 %"
    if policy.split.mode == "sticky" and not policy.split.key:
        yield ("split",), "a sticky split needs a key: header:NAME, api-key, or user"
    if policy.split.mode == "random" and policy.split.key:
        yield ("split", "key"), "a random split has no key; remove it or set mode: sticky"
    for index, group in enumerate(policy.groups):
        if group.region and not policy.region:
            yield (
                ("groups", index, "region"),
                "regions have no source; add region: {header: NAME} or {database: FILE}",
            )
    yield from _overlaps(policy.groups)
    if policy.rollout:
        yield from _not_alone(policy, policy.rollout)


def _missing_arms(policy: Policy) -> Iterator[tuple[Place, str]]:
    named: list[tuple[Place, str]] = [(("baseline",), policy.baseline)]
    named += [(("split", "weights", name), name) for name in policy.split.weights]
    named += [(("groups", index, "arm"), group.arm) for index, group in enumerate(policy.groups)]
    named += [(("fallback", index), name) for index, name in enumerate(policy.fallback)]
    if policy.mirror:
        named.append((("mirror", "arm"), policy.mirror.arm))
    if policy.rollout:
        named.append((("rollout", "arm"), policy.rollout.arm))
    for where, name in named:
        if name not in policy.arms:
            yield where, f"no arm {name!r}; arms are {', '.join(policy.arms)}"


def _not_alone(policy: Policy, rollout: Rollout) -> Iterator[tuple[Place, str]]:
    if rollout.arm == policy.baseline:
        yield ("rollout", "arm"), "the baseline cannot be rolled out; name the candidate"
    if policy.split.weights.keys() != {rollout.arm, policy.baseline}:
        yield (
            ("split", "weights"),
            f"a rollout needs the weights of {rollout.arm} and {policy.baseline}, and no others",
        )


def _overlaps(groups: tuple[Group, ...]) -> Iterator[tuple[Place, str]]:
    """Two groups of a kind that claim the same request: the order would decide silently."""
    values: dict[tuple[str, str], int] = {}
    networks: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, int]] = []
    for index, group in enumerate(groups):
        claims = [(("values", n), (group.header or "", value)) for n, value in enumerate(group.values)]
        claims += [(("region", n), ("region of", country)) for n, country in enumerate(group.region)]
        for where, claim in claims:
            if claim in values:
                yield ("groups", index, *where), f"{claim[1]!r} is already in group {values[claim] + 1}"
            values[claim] = index
        for n, network in enumerate(group.cidr):
            for other, owner in networks:
                if network.version == other.version and network.overlaps(other):
                    yield ("groups", index, "cidr", n), f"{network} overlaps {other} of group {owner + 1}"
            networks.append((network, index))
