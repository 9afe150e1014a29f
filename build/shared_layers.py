"""Finished work in a repository of an OCI registry: an artifact each, its files as layers, its manifest.json
as the configuration, under a tag of stage and key. Equal files are kept once, whatever work they are of.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from build.release.download import download_blobs
from build.release.modelpack import TITLE
from build.release.progress import transfers
from build.release.reference import Reference
from build.release.registry import MANIFEST as IMAGE
from build.release.registry import Registry, digest_of
from build.release.upload import Sessions, Source, upload_blobs
from engines.artifact import MANIFEST, Manifest
from engines.errors import UserError

WORK = "application/vnd.qwen3-vl-variants.work.v1+json"
FILE = "application/octet-stream"
KEY_LETTERS = 16  # of a key, at the end of a folder's name


@dataclass(frozen=True)
class Layers:
    """Every failure is a UserError."""

    url: str

    def read(self, folder: Path) -> bytes | None:
        with self._opened() as registry:
            found = registry.manifest(_tag(folder))
            if found is None or found[1].get("artifactType") != WORK:
                return None
            digest = found[1]["config"]["digest"]
            content = registry.ask("GET", registry.url(f"blobs/{digest}"), 200, 404).content
            return content if digest_of(content) == digest else None

    def get(self, manifest: Manifest, folder: Path, target: Path) -> None:
        blobs = folder.with_name(f".{folder.name}.blobs")  # a download that was cut short goes on there
        wanted = {f"sha256:{file.sha256}": (name, file.bytes) for name, file in manifest.files.items()}
        with self._opened() as registry:
            if not all(map(registry.has_blob, wanted)):
                return
            with transfers(f"fetch {manifest.stage} {manifest.name}", manifest.bytes) as report:
                download_blobs(registry, wanted, blobs, report)
        for name, file in manifest.files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            if wanted[f"sha256:{file.sha256}"][0] == name:  # the last of those with this content
                (blobs / file.sha256).replace(target / name)
            else:
                shutil.copyfile(blobs / file.sha256, target / name)
        blobs.rmdir()

    def put(self, manifest: Manifest, folder: Path) -> None:
        described = (folder / MANIFEST).read_bytes()
        blobs: dict[str, Source] = {digest_of(described): described}
        blobs |= {f"sha256:{file.sha256}": folder / name for name, file in manifest.files.items()}
        image = {
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "artifactType": WORK,
            "config": {"mediaType": WORK, "digest": digest_of(described), "size": len(described)},
            "layers": [
                {
                    "mediaType": FILE,
                    "digest": f"sha256:{file.sha256}",
                    "size": file.bytes,
                    "annotations": {TITLE: name},
                }
                for name, file in manifest.files.items()
            ],
        }
        sessions = Sessions(folder.with_name(f".{folder.name}.uploads.json"))
        with (
            self._opened() as registry,
            transfers(f"send {manifest.stage} {manifest.name}", manifest.bytes) as report,
        ):
            upload_blobs(registry, blobs, sessions, report)
            registry.put_manifest(_tag(folder), image)

    def _opened(self) -> Registry:
        reference = Reference.parse(self.url)
        if reference.tag or reference.digest:
            raise UserError(f"--store {self.url}: tags are of the work; expected oci://HOST/REPOSITORY")
        return Registry(reference)


def _tag(folder: Path) -> str:
    return f"{folder.parent.name}-{folder.name[-KEY_LETTERS:]}"
