"""Waivers: a check that is known to miss its limit and shall not decide, for a reason and until a date."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from bench.verdict import Check, Waiver


def waive(
    checks: Sequence[Check], waivers: Sequence[Waiver], today: date
) -> tuple[list[Check], list[dict[str, str]]]:
    """The checks, those waived marked so, and every waiver with its status: a waived check keeps its verdict.

    An expired waiver and one that names no check change nothing, and are told all the same.
    """
    names = {check.name for check in checks}
    told = [
        {**waiver.model_dump(mode="json", exclude_none=True), "status": _status(waiver, names, today)}
        for waiver in waivers
    ]
    waived = {one["check"] for one in told if one["status"] == "in force"}
    return [check.model_copy(update={"waived": check.name in waived}) for check in checks], told


def _status(waiver: Waiver, names: set[str], today: date) -> str:
    if today > waiver.expires:
        return "expired"
    return "in force" if waiver.check in names else "unused: there is no such check"
