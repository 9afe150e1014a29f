"""What a target cannot express, told before anything is written."""

from __future__ import annotations

from engines.errors import UserError
from serve.router.policy import Policy

Refusal = tuple[bool, str, str]  # whether the policy has it, what it is, what to do


def refuse(target: str, *refusals: Refusal) -> None:
    """Raises UserError for the first that applies."""
    for applies, what, remedy in refusals:
        if applies:
            raise UserError(f"{target} cannot express {what}; {remedy}")


def refuse_all_but_routes(target: str, policy: Policy) -> None:
    """For targets that only route by header and by chance."""
    refuse(
        target,
        arms_without_url(policy),
        (policy.split.mode == "sticky", "a sticky split", "use mode: random, or compile for a proxy"),
        (bool(policy.overrides), "overrides", "leave them out, or use a group by header"),
        (any(group.cidr for group in policy.groups), "groups by cidr", "use groups by header"),
        region_database(policy),
        (bool(policy.fallback), "a fallback", "leave it out"),
    )


def arms_without_url(policy: Policy) -> Refusal:
    without = [name for name, arm in policy.arms.items() if not arm.url]
    return bool(without), f"arms without a url ({', '.join(without)})", "start them and name their urls"


def key_in_body(policy: Policy) -> Refusal:
    return policy.split.key == "user", "split.key user, which is in the body", "use header:NAME or api-key"


def region_database(policy: Policy) -> Refusal:
    here = policy.region is not None and policy.region.database is not None
    return here, "region.database by itself", "let a proxy in front put the country in a header"


def timeouts_by_arm(policy: Policy) -> Refusal:
    differ = len({arm.timeouts for arm in policy.arms.values()}) > 1
    return differ, "timeouts that differ by arm", "give all arms the same"


def two_waiting_times(policy: Policy) -> Refusal:
    differ = any(arm.timeouts.first_byte_s != arm.timeouts.idle_s for arm in policy.arms.values())
    return differ, "a first_byte_s other than idle_s", "make them equal; it has one timeout for both"
