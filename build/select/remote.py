"""Catalogues in OCI registries: manifests and evidence are read, weights stay where they are.

Every file's hash is checked. Who signed it is not: `build pull` does that, before anything is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from build.release import modelpack
from build.release.download import download_blobs
from build.release.progress import transfers
from build.release.reference import SCHEME, Reference
from build.release.registry import Registry, digest_of
from build.select.catalogue import Published, read_catalogue
from build.store import link_or_copy
from engines.artifact import MANIFEST
from engines.engine_files import ENGINE_FACTS
from engines.errors import UserError

# What is asked of a variant before it is chosen; the rest is for whoever runs it.
READ = {MANIFEST, "config.json", "generation_config.json", ENGINE_FACTS}
READ |= {
    f"evidence/{name}" for name in ("gate.json", "environment.json", "observations.jsonl", "latency.jsonl")
}
Found = dict[Path, tuple[str, dict[str, Any]]]  # by <model>/<variant>: where it is, and its manifest there


@contextmanager
def catalogue_at(where: str, model: str | None) -> Iterator[list[Published]]:
    """The variants of one model in a folder, or an oci:// repository: of its tag, or of all its tags.

    Raises UserError as read_catalogue does, and when the registry has nothing of ours.
    """
    if "://" not in where:
        yield read_catalogue(Path(where), model)
        return
    if not where.startswith(SCHEME):
        raise UserError(f"--catalogue {where}: expected a folder or oci://HOST/REPOSITORY[:TAG]")
    with TemporaryDirectory() as folder, Registry(Reference.parse(where)) as registry:
        found = _variants(registry)
        if not found:
            raise UserError(f"{where} has no variant; expected tags that `python -m build publish` made")
        root = Path(folder)
        _fetch(registry, found, root)
        yield read_catalogue(root, model, {root / path: reference for path, (reference, _) in found.items()})


def _variants(registry: Registry) -> Found:
    """Of several that call themselves the same, the one made last."""
    reference, found = registry.reference, Found()
    for tag in [reference.last] if reference.tag or reference.digest else registry.tags():
        stored = registry.manifest(tag)
        if stored is None:
            raise UserError(f"{reference.host}/{reference.repository} has no {tag}")
        content, document = stored
        name = reference.at(digest_of(content))
        if document.get("artifactType") != modelpack.ARTIFACT:
            print(f"{tag} is left out: not a model", file=sys.stderr)
            continue
        path = modelpack.folder(document, name)
        known = found.get(path)
        if known and known[0] != name:
            older = tag if _created(document) < _created(known[1]) else known[0]
            print(f"{older} is left out: an older {path}", file=sys.stderr)
        if known is None or _created(document) > _created(known[1]):
            found[path] = name, document
    return found


def _created(document: dict[str, Any]) -> str:
    return str(document.get("annotations", {}).get("org.opencontainers.image.created", ""))


def _fetch(registry: Registry, found: Found, root: Path) -> None:
    """Puts what is read of each variant at `root`/<model>/<variant>."""
    layers = {
        path: {file: entry for file, entry in modelpack.files(document, name).items() if file in READ}
        for path, (name, document) in found.items()
    }
    blobs = {
        str(entry["digest"]): (file, int(entry["size"]))
        for entries in layers.values()
        for file, entry in entries.items()
    }
    with transfers("catalogue", sum(size for _, size in blobs.values())) as report:
        download_blobs(registry, blobs, root / ".blobs", report)
    for path, entries in layers.items():
        for file, entry in entries.items():
            link_or_copy(root / ".blobs" / str(entry["digest"]).removeprefix("sha256:"), root / path / file)
