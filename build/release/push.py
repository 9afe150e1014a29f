"""A staged variant to an OCI registry: its files as layers, and what vouches for it as referrers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.release import modelpack
from build.release.progress import transfers
from build.release.provenance import PROVENANCE
from build.release.registry import MANIFEST, Registry, canonical, digest_of
from build.release.sbom import SBOM
from build.release.signature import SIGNATURE
from build.release.stage import GATE, OBSERVATIONS
from build.release.upload import CHUNK, Sessions, Source, upload_blobs
from engines.artifact import ATTESTATIONS, Manifest, hash_file, hash_folder

# Artifact types of referrers by the file they hold: the media types of each format, and two of our own.
ATTACHED = {
    SIGNATURE: "application/vnd.dev.sigstore.bundle.v0.3+json",
    SBOM: "application/vnd.cyclonedx+json",
    PROVENANCE: "application/vnd.in-toto+json",
    GATE: "application/vnd.qwen3-vl-variants.gate.v1+json",
    OBSERVATIONS: "application/vnd.qwen3-vl-variants.observations.v1+jsonl",
}


@dataclass(frozen=True)
class Pushed:
    """digest: of the manifest in the registry. sent_bytes: less than bytes where the registry had some."""

    digest: str
    bytes: int
    sent_bytes: int


def push(
    folder: Path,
    model: str,
    tag: str,
    registry: Registry,
    sessions: Sessions,
    siblings: Sequence[str] = (),
    chunk: int = CHUNK,
) -> Pushed:
    """Uploads what neither the repository has nor its siblings, then the manifest under `tag`, then its
    referrers."""
    manifest = Manifest.read(folder)
    annotations = _annotations(model, manifest)
    files = hash_folder(folder, skip=frozenset({ATTESTATIONS}))
    layers = [modelpack.layer(name, file) for name, file in sorted(files.items())]
    config = canonical(modelpack.config(model, manifest, layers))
    attached = {name: kind for name, kind in ATTACHED.items() if (folder / name).is_file()}
    blobs: dict[str, Source] = {f"sha256:{file.sha256}": folder / name for name, file in files.items()}
    for name in attached:
        blobs[f"sha256:{hash_file(folder / name).sha256}"] = folder / name
    blobs |= {digest_of(document): document for document in (config, b"{}")}
    total = sum(len(blob) if isinstance(blob, bytes) else blob.stat().st_size for blob in blobs.values())
    with transfers(f"upload {manifest.variant}", total) as report:
        sent = upload_blobs(registry, blobs, sessions, report, chunk, siblings)
    described = {"mediaType": modelpack.CONFIG, "digest": digest_of(config), "size": len(config)}
    image = modelpack.image(described, layers, annotations)
    digest = registry.put_manifest(tag, image)
    subject = {"mediaType": MANIFEST, "digest": digest, "size": len(canonical(image))}
    for name, kind in attached.items():
        blob = modelpack.layer(name, hash_file(folder / name)) | {"mediaType": kind}
        attachment = modelpack.attachment(subject, kind, blob)
        registry.put_manifest(digest_of(canonical(attachment)), attachment)
    return Pushed(digest, total, sent)


def _annotations(model: str, manifest: Manifest) -> dict[str, str]:
    """https://github.com/opencontainers/image-spec/blob/main/annotations.md"""
    source = manifest.source
    facts: dict[str, Any] = {
        "created": manifest.created,
        "title": modelpack.title(model, manifest.variant),
        "licenses": source.get("license"),
        "base.name": source.get("repo"),
        "revision": source.get("commit"),
        "version": manifest.digest,
    }
    return {f"org.opencontainers.image.{name}": str(value) for name, value in facts.items() if value}
