"""Ray Serve: an application of the arms that have an artifact and of the split before them."""

from __future__ import annotations

from pathlib import Path

from engines.artifact import Manifest
from serve.compile.refusals import refuse, region_database
from serve.deploy.kubernetes import Json, dump
from serve.router.policy import Policy

ROOT = Path(__file__).resolve().parent.parent.parent


def ray(policy: Policy) -> dict[str, str]:
    """A configuration for `serve deploy` of Ray 2.60; what runs is in ray_app.py.

    Given another split the same arms go on. Breakers, retries, logs, mirrors and rollouts are the router's: a
    policy with one of the last two is refused. Raises UserError, too, where an artifact is not here.
    """
    refuse(
        "ray",
        (bool(policy.mirror), "a mirror", "leave it out, or run the router"),
        (bool(policy.rollout), "a rollout", "leave it out, or run the router"),
        region_database(policy),
    )
    arms: dict[str, str] = {}
    digests: dict[str, str] = {}
    parts: list[Json] = []
    told = policy.model_dump(mode="json", exclude_defaults=True)
    for name, arm in policy.arms.items():
        if not arm.artifact:
            continue
        manifest = Manifest.read(Path(arm.artifact))
        digests[name] = manifest.digest
        arms[name] = told["arms"][name]["artifact"] = str(Path(arm.artifact).resolve())
        told["arms"][name]["digest"] = arm.digest or manifest.digest
        parts.append({"name": f"arm-{name}", "ray_actor_options": _needs(manifest)})
    parts.append(
        {
            "name": "split",
            "user_config": told,
            "max_ongoing_requests": sum(arm.max_requests for arm in policy.arms.values()),
        }
    )
    application = {
        "name": policy.experiment,
        "route_prefix": "/",
        "import_path": "serve.deploy.ray_app:app",
        # Arms are started anew where these change, so too when a folder has another content.
        "args": {"arms": arms, "digests": digests},
        "runtime_env": {"env_vars": {"PYTHONPATH": f"{ROOT}:${{PYTHONPATH}}"}},
        "deployments": parts,
    }
    return {"serve.yaml": dump({"applications": [application]})}


def _needs(manifest: Manifest) -> Json:
    """What an arm takes of its node."""
    needs: Json = {"num_cpus": 1}
    if memory := manifest.requires.get("memory_bytes"):
        needs["memory"] = memory
    if manifest.requires.get("device", "cpu") != "cpu":
        needs |= {"num_gpus": 1, "label_selector": {"gpu": manifest.requires["device"]}}
    return needs
