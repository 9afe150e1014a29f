"""The manifest of a built thing: which files, from what, by which work, and how to check them again.

A folder is complete when its ``manifest.json`` exists; it is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from engines.errors import UserError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
ATTESTATIONS = "attestations"  # folder of what others say of an artifact: signature, SBOM, provenance

# Facts of one run of the work, not of what it made: two equal builds may differ in them. What the code
# was is in the stage's version; the commit it came from may differ in a README.
NOT_IN_DIGEST = {"created", "seconds", "host", "evidence", "requires"}
PROVENANCE = {"commit", "dirty"}


class File(BaseModel):
    """Content of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    bytes: int


def is_inside(path: str) -> bool:
    """Whether a relative POSIX path stays below the folder that it is put in, and is spelt in one way."""
    parts = path.split("/")
    return "\0" not in path and "\\" not in path and not {"", ".", ".."} & set(parts)


def _inside(files: dict[str, File]) -> dict[str, File]:
    for path in files:
        if not is_inside(path):
            raise ValueError(f"{path!r} is no path below the artifact")
    return files


Files = Annotated[dict[str, File], AfterValidator(_inside)]


class Manifest(BaseModel):
    """What a folder holds. Field meanings are in docs/artifact.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    schema_version: int = SCHEMA_VERSION
    name: str
    variant: str | None = None
    stage: str
    stage_version: str
    key: str
    config: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    files: Files
    source: dict[str, Any] = Field(default_factory=dict)
    quantization: dict[str, Any] | None = None
    engine: dict[str, Any] | None = None
    requires: dict[str, Any] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    host: str = ""
    evidence: Files = Field(default_factory=dict)

    @property
    def digest(self) -> str:
        """``sha256:…`` over the canonical JSON of everything that equal builds share."""
        shared = self.model_dump(exclude=NOT_IN_DIGEST)
        shared["source"] = {name: value for name, value in self.source.items() if name not in PROVENANCE}
        return canonical_digest(shared)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files.values())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        path = folder / MANIFEST
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise UserError(
                f"{folder} has no {MANIFEST}: expected a built artifact; build it with `python -m build all`"
            ) from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise UserError(
                f"{path} is not a manifest this version reads ({where}: {first['msg']}); build it again"
            ) from None

    def write(self, folder: Path) -> None:
        write_json(folder / MANIFEST, self.model_dump(exclude_none=True))


def canonical_digest(value: Any) -> str:
    """sha256 of a JSON value with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> File:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return File(sha256=digest, bytes=path.stat().st_size)


def hash_folder(folder: Path, skip: frozenset[str] = frozenset({MANIFEST})) -> dict[str, File]:
    """Every file below ``folder`` but the top-level names in ``skip``, keyed by POSIX path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    relative = {path.relative_to(folder): path for path in paths}
    return {name.as_posix(): hash_file(path) for name, path in relative.items() if name.parts[0] not in skip}


def damage(folder: Path, manifest: Manifest) -> list[str]:
    """What differs between ``folder`` and its manifest, one line each; empty when it is intact."""
    found = []
    for name, expected in {**manifest.files, **manifest.evidence}.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{path}: missing")
        elif path.stat().st_size != expected.bytes:
            found.append(f"{path}: {path.stat().st_size} bytes, the manifest says {expected.bytes}")
        elif hash_file(path).sha256 != expected.sha256:
            found.append(f"{path}: its sha256 is not the manifest's")
    listed = {*manifest.files, *manifest.evidence, MANIFEST}
    present = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    extra = {path.as_posix() for path in present if path.parts[0] != ATTESTATIONS} - listed
    return found + [f"{folder / name}: not in the manifest" for name in sorted(extra)]


def write_json(path: Path, value: Any) -> None:
    """Replaces ``path`` by a JSON document, as `write_whole` does."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: Path, text: str) -> None:
    """Replaces ``path`` in one step: readers see the old text or the new one, never half of it.

    Two that write the same file must take turns. What a killed one leaves, the next one overwrites.
    """
    temporary = path.with_name(f".{path.name}.new")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
