"""What may leave: a variant that passed its gate, as long as no waiver that helped it has expired."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any


def refusal(gate: Mapping[str, Any], today: date | None = None) -> str | None:
    """Why a variant with this gate.json may not leave; None when it may.

    A waiver counts until the day it expires, that day included.
    """
    verdict, today = gate.get("verdict"), today or date.today()
    if verdict is None:
        return "no gate: evidence/gate.json is missing; build it again with `python -m build all`"
    if verdict != "PASS":
        against = [check for check in gate["checks"] if check["verdict"] == verdict and not check["waived"]]
        why = f"{against[0]['metric']}: {against[0]['reason']}" if against else "no check is left to pass"
        return f"gate {verdict}: {why}"
    for waiver in gate["waivers"]:
        if waiver["status"] == "in force" and today > date.fromisoformat(waiver["expires"]):
            return f"its waiver of {waiver['check']} has expired on {waiver['expires']}; build it again"
    return None
