"""Where an artifact came from: SLSA provenance v1 in an in-toto statement (https://slsa.dev/provenance/v1).

Unsigned by itself: the signature of the folder covers it.
"""

from __future__ import annotations

import hashlib
from typing import Any

from engines.artifact import ATTESTATIONS, MANIFEST, Manifest

PROVENANCE = f"{ATTESTATIONS}/provenance.intoto.json"
PREDICATE = "https://slsa.dev/provenance/v1"
# How a manifest.json is to be read as a build: its stage, config and inputs.
BUILD_TYPE = "urn:qwen3-vl-variants:build:v1"
Json = dict[str, Any]


def provenance(manifest: Manifest, manifest_json: bytes) -> str:
    """The statement about every file of the artifact, as JSON; equal manifests give equal text."""
    from google.protobuf.json_format import MessageToJson, ParseDict
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
    from in_toto_attestation.v1.statement import Statement

    hashes = {name: file.sha256 for name, file in {**manifest.files, **manifest.evidence}.items()}
    hashes[MANIFEST] = hashlib.sha256(manifest_json).hexdigest()
    subjects = [
        ResourceDescriptor(name, digest={"sha256": digest}).pb for name, digest in sorted(hashes.items())
    ]
    predicate = _predicate(manifest)
    ParseDict(predicate, provenance_pb2.Provenance())  # refuses what the specification has no field for
    statement = Statement(subjects, PREDICATE, predicate)
    statement.validate()
    return str(MessageToJson(statement.pb, sort_keys=True)) + "\n"


def _predicate(manifest: Manifest) -> Json:
    source = manifest.source
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "variant": manifest.variant,
                "stage": manifest.stage,
                "config": manifest.config,
                "repo": source.get("repo"),
                "revision": source.get("revision"),
            },
            "internalParameters": {"stageVersion": manifest.stage_version, "packages": manifest.packages},
            "resolvedDependencies": [
                {"name": role, "digest": {"sha256": digest.removeprefix("sha256:")}}
                for role, digest in sorted(manifest.inputs.items())
            ]
            + ([{"name": "code", "digest": {"gitCommit": source["commit"]}}] if source.get("commit") else []),
        },
        "runDetails": {
            "builder": {"id": "urn:qwen3-vl-variants:build"},
            "metadata": {"invocationId": manifest.key, "finishedOn": manifest.created},
        },
    }
