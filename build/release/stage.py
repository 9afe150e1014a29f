"""A variant made ready to leave: checked, with its model card, and with what vouches for it.

Staging the same artifact again gives the same bytes, but for the signature.
"""

from __future__ import annotations

from pathlib import Path

from build.publish import EVIDENCE
from build.release.card import CARD, model_card
from build.release.keyless import Keyless
from build.release.provenance import PROVENANCE, provenance
from build.release.sbom import SBOM, sbom
from build.release.signature import sign
from build.release.verdict import refusal
from build.select.catalogue import Published
from build.store import link_or_copy
from engines.artifact import ATTESTATIONS, MANIFEST, Manifest, damage, hash_file
from engines.errors import UserError

GATE, OBSERVATIONS = f"{EVIDENCE}/gate.json", f"{EVIDENCE}/observations.jsonl"


def stage(artifact: Path, fresh: Path, signer: Path | Keyless | None) -> Manifest:
    """Fills the empty folder `fresh`; signed where there is somebody to sign (signature.py).

    Raises UserError when the artifact is damaged, or its gate does not let it leave.
    """
    manifest = Manifest.read(artifact)
    if found := damage(artifact, manifest):
        raise UserError(f"{found[0]}; build it again")
    published = Published(artifact, manifest)
    if reason := refusal(published.gate):
        raise UserError(f"{artifact} is not published: {reason}")
    for name in (*manifest.files, *manifest.evidence):
        if name != CARD:
            link_or_copy(artifact / name, fresh / name)
    (fresh / CARD).write_text(model_card(artifact, published.model, manifest))
    evidence = {**manifest.evidence, CARD: hash_file(fresh / CARD)}
    manifest = manifest.model_copy(update={"evidence": evidence})
    manifest.write(fresh)
    (fresh / ATTESTATIONS).mkdir()
    packages = published.environment.get("packages", {})
    (fresh / SBOM).write_text(sbom(published.model, manifest, published.gate, packages))
    (fresh / PROVENANCE).write_text(provenance(manifest, (fresh / MANIFEST).read_bytes()))
    if signer is not None:
        sign(fresh, signer)
    return manifest
