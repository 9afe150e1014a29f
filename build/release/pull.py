"""A variant from an OCI registry: every hash and the signature are checked before it gets its name."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.publish import replaced
from build.release import modelpack
from build.release.download import download_blobs
from build.release.keyless import Identity
from build.release.progress import transfers
from build.release.push import ATTACHED
from build.release.registry import Registry, digest_of
from build.release.signature import SIGNATURE, verify
from build.store import link_or_copy
from engines.artifact import ATTESTATIONS, MANIFEST, Manifest, damage
from engines.errors import UserError

Json = dict[str, Any]


@dataclass(frozen=True)
class Pulled:
    """digest: of the manifest in the registry."""

    path: Path
    digest: str
    signed: bool


def pull(registry: Registry, out: Path, signer: Path | Identity | None) -> Pulled:
    """Installs the registry's reference at `out`/<model>/<variant>, an older one replaced.

    signer: the public key, or who, must have signed it; None takes it as it is, signed or not. Raises
    UserError, with nothing installed, for whatever is missing, cut short, changed or not signed by them.
    """
    reference = registry.reference
    found = registry.manifest(reference.last)
    if found is None:
        raise UserError(f"{reference.host}/{reference.repository} has no {reference.last}")
    digest = digest_of(found[0])
    name = reference.at(digest)
    layers = modelpack.files(found[1], name)
    vouching = _attestations(registry, digest)
    if signer is not None and not vouching[SIGNATURE]:
        raise UserError(f"{name}: it has no signature; expected one by {signer}")
    partial = out / f".pull-{digest.removeprefix('sha256:')[:16]}"
    entries = {**layers, **{path: e for path, several in vouching.items() for e in several[:1]}}
    signatures = vouching[SIGNATURE]
    wanted = {str(entry["digest"]): (path, int(entry["size"])) for path, entry in entries.items()}
    wanted |= {str(entry["digest"]): (SIGNATURE, int(entry["size"])) for entry in signatures}
    target = out / modelpack.folder(found[1], name)
    with replaced(target) as fresh:  # two that pull the same take turns
        with transfers("download", sum(size for _, size in wanted.values())) as report:
            download_blobs(registry, wanted, partial, report)
        for path, entry in entries.items():
            link_or_copy(partial / str(entry["digest"]).removeprefix("sha256:"), fresh / path)
        manifest = Manifest.read(fresh)
        if problems := damage(fresh, manifest):
            raise UserError(f"{name}: {problems[0].removeprefix(f'{fresh}/')}; nothing was installed")
        if target.name != (manifest.variant or manifest.name):
            raise UserError(f"{name} calls itself {target.name}, its {MANIFEST} {manifest.variant}: not ours")
        if signer is not None:
            _verify_any(fresh, signatures, partial, signer, name)
    shutil.rmtree(partial, ignore_errors=True)
    return Pulled(target, digest, signed=signer is not None)


def _attestations(registry: Registry, digest: str) -> dict[str, list[Json]]:
    """Layers of the referrers that vouch for a manifest, by the file they become; newest first."""
    kinds = {kind: path for path, kind in ATTACHED.items() if path.startswith(ATTESTATIONS)}
    found: dict[str, list[Json]] = {path: [] for path in kinds.values()}
    for entry in registry.referrers(digest):
        path = kinds.get(entry.get("artifactType", ""))
        if path is None:
            continue
        manifest = registry.manifest(entry["digest"])
        if manifest is None:
            raise UserError(
                f"{registry.reference.at(entry['digest'])}: the registry lists it and has lost it"
            )
        found[path].insert(0, manifest[1]["layers"][0])
    return found


def _verify_any(
    fresh: Path, signatures: list[Json], partial: Path, signer: Path | Identity, name: str
) -> None:
    """It may have been signed more than once: one signature by them is enough."""
    for number, entry in enumerate(signatures, start=1):
        (fresh / SIGNATURE).unlink(missing_ok=True)
        link_or_copy(partial / str(entry["digest"]).removeprefix("sha256:"), fresh / SIGNATURE)
        try:
            verify(fresh, signer)
            return
        except UserError as error:
            if number == len(signatures):
                raise UserError(f"{name}: {error}; nothing was installed") from None
