"""The offline gate of a candidate, without whose PASS it gets no 100 %."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from engines.artifact import Manifest
from engines.errors import UserError
from serve.router.policy import Policy

NAME = "evidence/gate.json"


def refusal(policy: Policy) -> str | None:
    """Why the candidate may not have 100 %; None where its artifact passed.

    A gate counts as part of its artifact only: the manifest beside it lists its hash, it judges the
    manifest's digest, and that is the arm's where the policy states one.
    """
    plan = policy.rollout
    assert plan
    arm = policy.arms[plan.arm]
    if not plan.gate and not arm.artifact:
        return f"100 % needs the offline gate of {plan.arm}; name its gate.json as rollout.gate"
    file = Path(plan.gate) if plan.gate else Path(arm.artifact or "") / NAME
    try:
        manifest = Manifest.read(file.parent.parent)
        content = file.read_bytes()
        gate = json.loads(content)
        verdict, judged = gate["verdict"], gate["candidate"]
        bad = {str(check["metric"]) for check in gate["checks"] if check["verdict"] != "PASS"}
        waived = {str(waiver["check"]) for waiver in gate["waivers"]}
    except UserError as error:
        return f"100 % needs a gate inside its artifact; {error}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"100 % needs a gate that passed; {file} cannot be read as one"
    digest = manifest.digest
    listed = manifest.evidence.get(NAME)
    if not listed or listed.sha256 != hashlib.sha256(content).hexdigest():
        return f"100 % needs the gate as it was published; {file} is not the one that its manifest lists"
    if judged != digest or (arm.digest and arm.digest != digest):
        return f"100 % needs the gate of what {plan.arm} serves; {file} is of {judged}"
    if verdict != "PASS":
        return f"100 % needs a gate that passed; {file} says {verdict}"
    if unwaived := sorted(bad - waived):
        return f"100 % needs a gate that passed; {file} says so, but not of {', '.join(unwaived)}"
    return None
