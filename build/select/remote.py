"""Catalogues in OCI registries: manifests and evidence are read, weights stay where they are.

Every file's hash is checked. Who signed it is not: `build pull` does that, before anything is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Stored:
    """A variant in a registry: where, since when, and the layers that are read, by file."""

    reference: str
    created: str
    layers: dict[str, dict[str, Any]]


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
        yield read_catalogue(root, model, {root / path: stored.reference for path, stored in found.items()})


def _variants(registry: Registry) -> dict[Path, Stored]:
    """By <model>/<variant>; of several that call themselves the same, the one made last."""
    reference, found = registry.reference, dict[Path, Stored]()
    for tag in [reference.last] if reference.tag or reference.digest else registry.tags():
        manifest = registry.manifest(tag)
        if manifest is None:
            raise UserError(f"{reference.host}/{reference.repository} has no {tag}")
        content, document = manifest
        name = reference.at(digest_of(content))
        try:
            layers, path = modelpack.files(document, name), modelpack.folder(document, name)
            if MANIFEST not in layers:
                raise UserError(f"{name} has no {MANIFEST}: another tool made it")
        except UserError as error:
            print(f"{tag} is left out: {error}", file=sys.stderr)
            continue
        created = str(document["annotations"].get("org.opencontainers.image.created", ""))
        stored = Stored(name, created, {file: layers[file] for file in READ & layers.keys()})
        known = found.get(path, stored)
        if known.reference != name:
            older = min(known, stored, key=lambda one: one.created)
            print(f"{older.reference} is left out: an older {path}", file=sys.stderr)
        found[path] = max(known, stored, key=lambda one: one.created)
    return found


def _fetch(registry: Registry, found: dict[Path, Stored], root: Path) -> None:
    """Puts what is read of each variant at `root`/<model>/<variant>."""
    blobs = {
        str(entry["digest"]): (file, int(entry["size"]))
        for stored in found.values()
        for file, entry in stored.layers.items()
    }
    with transfers("catalogue", sum(size for _, size in blobs.values())) as report:
        download_blobs(registry, blobs, root / ".blobs", report)
    for path, stored in found.items():
        for file, entry in stored.layers.items():
            link_or_copy(root / ".blobs" / str(entry["digest"]).removeprefix("sha256:"), root / path / file)
