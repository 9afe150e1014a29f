"""What may leave: a variant that passed its gate, or one whose every failed check is waived."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any


def refusal(gate: Mapping[str, Any], today: date | None = None) -> str | None:
    """Why a variant with this gate.json may not leave; None when it may.

    A waiver counts for the checks of its metric until the day it expires, that day included.
    """
    verdict = gate.get("verdict")
    if verdict is None:
        return "no gate: evidence/gate.json is missing; build it again with `python -m build all`"
    if verdict == "PASS":
        return None
    today = today or datetime.now(UTC).date()
    waivers = gate["waivers"]
    standing = {waiver["check"] for waiver in waivers if date.fromisoformat(waiver["expires"]) >= today}
    for check in gate["checks"]:
        if check["verdict"] != "PASS" and check["metric"] not in standing:
            expired = any(waiver["check"] == check["metric"] for waiver in waivers)
            ending = "; its waiver has expired" if expired else ""
            return f"gate {verdict}: {check['metric']}: {check['reason']}{ending}"
    return None if gate["checks"] else f"gate {verdict}: it has no checks"
