"""A variant as an OCI artifact of the CNCF ModelPack specification (v0.0.7): one layer for each file.

https://github.com/modelpack/model-spec/blob/main/docs/spec.md
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from build.release.registry import MANIFEST
from engines.artifact import File, Manifest, is_inside
from engines.errors import UserError

ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
FILEPATH = "org.cncf.model.filepath"
TITLE = "org.opencontainers.image.title"  # by which ORAS and others name files
PLAIN = re.compile(r"\w[\w .-]*")  # a folder's name, in any script: neither hidden nor a way out
EMPTY = "application/vnd.oci.empty.v1+json"  # the two bytes {}
EMPTY_DIGEST = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
DIGEST = re.compile("sha256:[0-9a-f]{64}")
Json = dict[str, Any]

# What a layer holds, by the end of its name; anything else configures the model.
KINDS = {
    (".safetensors", ".onnx", ".data", ".bin", ".engine"): "weight",
    (".md", ".html"): "doc",
    (".sh",): "code",
    (".jsonl",): "dataset",
}


def media_type(path: str) -> str:
    found = (kind for ends, kind in KINDS.items() if path.endswith(ends))
    return f"application/vnd.cncf.model.{next(found, 'weight.config')}.v1.raw"


def layer(path: str, file: File) -> Json:
    """The descriptor of one file, as it is: neither archived nor compressed."""
    return {
        "mediaType": media_type(path),
        "digest": f"sha256:{file.sha256}",
        "size": file.bytes,
        "annotations": {FILEPATH: path, TITLE: path},
    }


def config(model: str, manifest: Manifest, layers: list[Json]) -> Json:
    """The ModelPack configuration: facts for registries and people; the manifest.json layer has all."""
    source, engine = manifest.source, manifest.engine or {}
    formats = {"onnxruntime": "onnx", "transformers": "safetensors"}
    described = {
        "createdAt": manifest.created,
        "family": "qwen3-vl",
        "name": model,
        "title": f"{model} {manifest.variant}",
        "version": manifest.variant,
        "revision": source.get("revision") or "",
        "licenses": [source["license"]] if source.get("license") else [],
    }
    technical = {
        "architecture": "transformer",
        "format": formats.get(engine.get("runtime", "transformers"), "engine"),
        "precision": engine.get("precision", "W4A16" if manifest.quantization else "as stored"),
        "quantization": (manifest.quantization or {}).get("method", ""),
        "capabilities": {
            "inputTypes": ["text", "image", "video"],
            "outputTypes": ["text"],
            "toolUsage": True,
        },
    }
    return {
        "descriptor": {name: value for name, value in described.items() if value},
        "config": {name: value for name, value in technical.items() if value},
        "modelfs": {"type": "layers", "diffIds": [entry["digest"] for entry in layers]},
    }


def image(config_descriptor: Json, layers: list[Json], annotations: dict[str, str]) -> Json:
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": config_descriptor,
        "layers": layers,
        "annotations": annotations,
    }


def attachment(subject: Json, kind: str, blob: Json) -> Json:
    """A manifest that refers to another: one blob of a media type, found by whoever asks for that type."""
    empty = {"mediaType": EMPTY, "digest": EMPTY_DIGEST, "size": 2}
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": kind,
        "config": empty,
        "layers": [blob],
        "subject": subject,
    }


def title(model: str, variant: str | None) -> str:
    """What an artifact calls itself. UserError where `folder` would refuse it."""
    if not PLAIN.fullmatch(model):
        raise UserError(
            f"the model's folder is {model!r}: expected letters, digits, spaces and .-_ ; rename it"
        )
    return f"{model}/{variant}"


def folder(document: Json, name: str) -> Path:
    """<model>/<variant> as the artifact calls itself, each a plain name."""
    annotations = document.get("annotations")
    called = annotations.get(TITLE) if isinstance(annotations, dict) else None
    parts = str(called).split("/")
    if len(parts) != 2 or not all(PLAIN.fullmatch(part) for part in parts):
        raise UserError(f"{name}: its title is {called!r}, expected MODEL/VARIANT")
    return Path(*parts)


def files(document: Json, name: str) -> dict[str, Json]:
    """Layers of a ModelPack manifest by file path, each checked to stay below the folder it is put in."""
    if document.get("artifactType") != ARTIFACT:
        found = document.get("artifactType") or document.get("mediaType")
        raise UserError(f"{name} is {found}, expected a model ({ARTIFACT})")
    found_layers: dict[str, Json] = {}
    try:
        for entry in document["layers"]:
            path = entry["annotations"][FILEPATH]
            whole = isinstance(entry["size"], int) and DIGEST.fullmatch(entry["digest"])
            if (
                not whole
                or not is_inside(path)
                or path in found_layers
                or not entry["mediaType"].endswith(".raw")
            ):
                raise UserError(
                    f"{name}: a layer with the path {path!r} ({entry['mediaType']}) is not one of ours"
                )
            found_layers[path] = entry
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: its manifest is no model's as we write them ({error!r})") from None
    return found_layers
