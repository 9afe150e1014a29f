"""A policy of one arm: the variant that `python -m build select` chooses for this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.errors import UserError
from engines.ports import free_port

ROOT = Path(__file__).resolve().parent.parent


def select_policy(arguments: Sequence[str], state: Path) -> Path:
    """Writes `state`/selected.yaml, the policy of what `build select` chooses when called with `arguments`.

    The choice is made by that command, in a process of its own. Raises UserError when nothing fits, when the
    choice has to be pulled first, and when it is a checkpoint on a GPU, which is not started by a policy.
    """
    command = [sys.executable, "-m", "build", "select", "--json", *arguments]
    # With the project first on the path `build` is ours, not the package of that name.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}, check=False
    )
    if done.returncode not in (0, 3):
        raise UserError("--select: `build select` failed; its reason is above")
    found = json.loads(done.stdout.splitlines()[-1])
    reasons = {row["variant"]: row for row in found["reasons"]}
    if found["choice"] is None:
        nearest = found["nearest"]
        hint = f"nearest {nearest['variant']}, would fit: {nearest['remedy']}" if nearest else _all(reasons)
        raise UserError(f"--select: nothing fits; {hint}")
    chosen = reasons[found["choice"]]
    if reference := chosen.get("reference"):
        raise UserError(
            f"--select chose {found['choice']}, which is not here; pull it, and select among what is here: "
            f"python -m build pull {reference} --key FILE"
        )
    if chosen["device"]["gpu"] and chosen["runtime"] == "transformers":
        raise UserError(
            f"--select chose a checkpoint on a GPU; start it with: serve arm {found['path']} --device cuda"
        )
    print(f"selected {found['choice']} for {chosen['device']['name']}", file=sys.stderr, flush=True)
    state.mkdir(parents=True, exist_ok=True)
    policy = state / "selected.yaml"
    policy.write_text(_policy(found["choice"], Path(found["path"]).resolve(), found["digest"]))
    return policy


def _policy(arm: str, artifact: Path, digest: str) -> str:
    """YAML; JSON strings are YAML strings, whatever a path holds."""
    facts = {"url": f"http://127.0.0.1:{free_port()}", "artifact": str(artifact), "digest": digest}
    return (
        f"experiment: selected\nbaseline: {arm}\narms:\n  {arm}: {json.dumps(facts)}\n"
        f"split: {{mode: random, weights: {{{arm}: 100}}}}\n"
    )


def _all(reasons: dict[str, Any]) -> str:
    return "; ".join(f"{variant}: {row['reason']}" for variant, row in reasons.items())
