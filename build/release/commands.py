"""`python -m build publish` and `pull`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.resources import human_size
from build.publish import beside, replaced
from build.release.hub import SCHEME as HUB
from build.release.hub import upload_to_hub
from build.release.pull import pull
from build.release.push import push
from build.release.reference import SCHEME as OCI
from build.release.reference import Reference
from build.release.registry import Registry
from build.release.stage import stage
from build.release.upload import Sessions
from engines.artifact import Manifest
from engines.errors import UserError

Json = dict[str, Any]


def publish_command(options: Namespace) -> int:
    _check_several(options.artifacts, options.to)
    rows = [_publish(artifact.resolve(), options.to, options.key) for artifact in options.artifacts]
    for row in rows:
        sent = (
            f", {human_size(row['sent_bytes'])} of {human_size(row['bytes'])} sent" if "bytes" in row else ""
        )
        print(f"{row['variant']}: {row['reference']}{sent}")
    if options.key is None:
        print("not signed: whoever pulls it has to say --unsigned; sign with --key", file=sys.stderr)
    if options.json:
        print(json.dumps({"published": rows}))
    return 0


def _publish(artifact: Path, to: str, key: Path | None) -> Json:
    variant, model = Manifest.read(artifact).variant or artifact.name, artifact.parent.name
    row: Json = {"variant": variant, "signed": key is not None}
    if not to.startswith((OCI, HUB)):
        target = Path(to) / model / variant
        if target.resolve() == artifact:
            raise UserError(f"{artifact} is where it would be published to; choose another folder")
        with replaced(target) as fresh:
            digest = stage(artifact, fresh, key).digest
        return row | {"reference": str(target), "digest": digest}
    if to.startswith(HUB):
        with beside(artifact) as fresh:
            digest = stage(artifact, fresh, key).digest
            return row | {"reference": upload_to_hub(fresh, to, variant), "digest": digest}
    reference = Reference.parse(to)
    if reference.digest:
        raise UserError(f"--to {to}: a digest follows from the content; give a tag, or none")
    reference = replace(reference, tag=reference.tag or variant)
    sessions = Sessions(artifact.with_name(f".{variant}.uploads.json"))
    with beside(artifact) as fresh, Registry(reference) as registry:
        stage(artifact, fresh, key)
        pushed = push(fresh, model, reference.last, registry, sessions)
    sizes = {"bytes": pushed.bytes, "sent_bytes": pushed.sent_bytes}
    return row | {"reference": reference.at(pushed.digest), "digest": pushed.digest, **sizes}


def pull_command(options: Namespace) -> int:
    if (options.key is None) == (not options.unsigned):
        raise UserError(
            "give --key FILE, the publisher's public key, or --unsigned to trust whatever is there"
        )
    with Registry(Reference.parse(options.reference)) as registry:
        pulled = pull(registry, options.out, options.key)
    checked = f"signed by {options.key}" if pulled.signed else "its signature was not checked"
    print(f"{pulled.path}: {pulled.digest}, {checked}")
    if options.json:
        print(json.dumps({"path": str(pulled.path), "digest": pulled.digest, "signed": pulled.signed}))
    return 0


def _check_several(artifacts: list[Path], to: str) -> None:
    """One name holds one variant."""
    if len(artifacts) < 2:
        return
    if to.startswith(HUB) or (to.startswith(OCI) and Reference.parse(to).tag):
        raise UserError(
            f"--to {to} names one variant, {len(artifacts)} are given: leave the tag away, or publish each"
        )
