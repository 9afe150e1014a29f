"""`python -m build publish` and `pull`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from build.publish import beside, replaced
from build.release.hub import SCHEME as HUB
from build.release.hub import upload_to_hub
from build.release.keyless import Identity, Keyless
from build.release.pull import pull
from build.release.push import push
from build.release.reference import SCHEME as OCI
from build.release.reference import Reference
from build.release.registry import Registry
from build.release.siblings import Siblings
from build.release.stage import stage
from build.release.upload import Sessions
from engines.artifact import Manifest
from engines.errors import UserError
from engines.units import human_size

Json = dict[str, Any]


def publish_command(options: Namespace) -> int:
    _check_several(options.artifacts, options.to)
    signer = _signer(options)
    rows = [_publish(artifact.resolve(), options.to, signer) for artifact in options.artifacts]
    for row in rows:
        sent = (
            f", {human_size(row['sent_bytes'])} of {human_size(row['bytes'])} sent" if "bytes" in row else ""
        )
        print(f"{row['variant']}: {row['reference']}{sent}")
    if signer is None:
        print("not signed: whoever pulls it has to say --unsigned; sign with --key", file=sys.stderr)
    if options.json:
        print(json.dumps({"published": rows}))
    return 0


def _signer(options: Namespace) -> Path | Keyless | None:
    if options.key and options.keyless:
        raise UserError("found --key and --keyless, expected one of them, or neither to publish unsigned")
    if options.trust_config and not options.keyless:
        raise UserError("--trust-config goes with --keyless")
    return Keyless(_existing(options.trust_config)) if options.keyless else options.key


def _expected_signer(options: Namespace) -> Path | Identity | None:
    """Who must have signed what is pulled; None where the user trusts whatever is there."""
    told = [bool(options.key), bool(options.identity or options.issuer), options.unsigned]
    if sum(told) != 1:
        raise UserError(
            "give --key FILE, the publisher's public key, or --identity WHO --issuer URL, or --unsigned to "
            "trust whatever is there"
        )
    if bool(options.identity) != bool(options.issuer):
        raise UserError("--identity WHO and --issuer URL go together: anybody may call himself anything")
    if options.trust_config and not options.identity:
        raise UserError("--trust-config goes with --identity")
    if options.identity:
        return Identity(options.identity, options.issuer, _existing(options.trust_config))
    key: Path | None = options.key
    return key


def _existing(file: Path | None) -> Path | None:
    if file is not None and not file.is_file():
        raise UserError(f"--trust-config {file}: no such file; expected a Sigstore client trust config")
    return file


def _publish(artifact: Path, to: str, signer: Path | Keyless | None) -> Json:
    variant, model = Manifest.read(artifact).variant or artifact.name, artifact.parent.name
    row: Json = {"variant": variant, "signed": signer is not None}
    if not to.startswith((OCI, HUB)):
        target = Path(to) / model / variant
        if target.resolve() == artifact:
            raise UserError(f"{artifact} is where it would be published to; choose another folder")
        with replaced(target) as fresh:
            digest = stage(artifact, fresh, signer).digest
        return row | {"reference": str(target), "digest": digest}
    if to.startswith(HUB):
        with beside(artifact) as fresh:
            digest = stage(artifact, fresh, signer).digest
            return row | {"reference": upload_to_hub(fresh, to, variant), "digest": digest}
    reference = Reference.parse(to)
    if reference.digest:
        raise UserError(f"--to {to}: a digest follows from the content; give a tag, or none")
    reference = replace(reference, tag=reference.tag or variant)
    siblings = Siblings(artifact.with_name(".published.json"))
    with beside(artifact) as fresh, Registry(reference) as registry:
        sessions = Sessions(artifact.with_name(f".{variant}.uploads.json"))
        stage(artifact, fresh, signer)
        pushed = push(fresh, model, reference.last, registry, sessions, siblings.of(reference))
    siblings.remember(reference)
    sizes = {"bytes": pushed.bytes, "sent_bytes": pushed.sent_bytes}
    return row | {"reference": reference.at(pushed.digest), "digest": pushed.digest, **sizes}


def pull_command(options: Namespace) -> int:
    signer = _expected_signer(options)
    with Registry(Reference.parse(options.reference)) as registry:
        pulled = pull(registry, options.out, signer)
    checked = f"signed by {signer}" if pulled.signed else "its signature was not checked"
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
