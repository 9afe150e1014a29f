"""What an artifact consists of and was made with: a CycloneDX 1.6 ML bill of materials."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from engines.artifact import ATTESTATIONS, Manifest

SBOM = f"{ATTESTATIONS}/sbom.cdx.json"
Json = dict[str, Any]


def sbom(model: str, manifest: Manifest, gate: Mapping[str, Any], packages: Mapping[str, str]) -> str:
    """JSON: the model with its files, licence and model card, and the packages of the machine that built it.

    Number and time follow from the artifact: the same artifact has the same bill.
    """
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType, Pedigree
    from cyclonedx.output.json import JsonV1Dot6
    from packageurl import PackageURL

    def hashed(name: str, sha256: str) -> Component:
        digest = HashType(alg=HashAlgorithm.SHA_256, content=sha256)
        return Component(name=name, type=ComponentType.FILE, hashes=[digest], bom_ref=f"file:{name}")

    source, reference = manifest.source, f"model:{manifest.digest}"
    licence = source.get("license")
    base = Component(
        name=str(source.get("repo", "checkpoint")),
        version=source.get("revision"),
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="base-model",
    )
    described = Component(
        name=model,
        version=manifest.variant,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=reference,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [],
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=manifest.digest.removeprefix("sha256:"))],
        components=[hashed(name, file.sha256) for name, file in manifest.files.items()],
        pedigree=Pedigree(ancestors=[base]),
        properties=[
            Property(name=f"quantization:{name}", value=str(value))
            for name, value in (manifest.quantization or {}).items()
        ],
    )
    libraries = [
        Component(
            name=name,
            version=version,
            type=ComponentType.LIBRARY,
            purl=PackageURL("pypi", name=name, version=version),
            bom_ref=f"pypi:{name}",
        )
        for name, version in packages.items()
    ]
    bom = Bom(components=libraries, serial_number=uuid5(NAMESPACE_URL, manifest.digest))
    bom.metadata.component = described
    bom.metadata.timestamp = datetime.fromisoformat(manifest.created)
    bom.register_dependency(described, libraries)
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    # The library knows no model cards yet.
    document["metadata"]["component"]["modelCard"] = _model_card(gate)
    return json.dumps(document, indent=2, sort_keys=True) + "\n"


def _model_card(gate: Mapping[str, Any]) -> Json:
    """The gate's figures, as the specification's performance metrics."""
    metrics = []
    for check in gate.get("checks", []):
        if check.get("candidate") is None:
            continue
        metric: Json = {"type": check["metric"], "value": str(check["candidate"]), "slice": check["slice"]}
        metrics.append(metric)
    return {
        "modelParameters": {
            "task": "image-text-to-text",
            "architectureFamily": "transformer",
            "modelArchitecture": "Qwen3-VL",
            "inputs": [{"format": kind} for kind in ("text", "image", "video")],
            "outputs": [{"format": "text"}],
        },
        "quantitativeAnalysis": {"performanceMetrics": metrics},
    }
