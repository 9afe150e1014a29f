"""Documents that leave with a variant, read by others: the hub's client, CycloneDX's schema, in-toto."""

from __future__ import annotations

import json
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from google.protobuf.json_format import Parse
from huggingface_hub import ModelCard
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from build.release.card import model_card
from build.release.stage import stage
from build.release.verdict import refusal
from build.stages import quantization_fields
from engines.artifact import Manifest, hash_file
from tests.published import INT4, publish_variant


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    stage(publish_variant(tmp_path, "gptq-int4-onnx"), fresh, None)
    return fresh


def test_the_hub_reads_the_card(staged: Path) -> None:
    card = ModelCard.load(staged / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.base_model == "Qwen/Qwen3-VL-2B-Instruct"
    assert card.data.pipeline_tag == "image-text-to-text"
    assert "int4" in card.data.tags
    for told in (
        "`Qwen/Qwen3-VL-2B-Instruct` at revision `89644892e4d8`",
        "| accuracy (points) | all | 96.4 | 94.9 | -1.5 (-2.3 to -0.9) | -5 | 1000 | PASS |",
        "GPTQ, 4 bits, groups of 32, symmetric: decoder linears.",
        "e2e_latency_ms 10 / 10 / 10",
        "Peak memory 100 MB at 2,048 tokens x 1, on cpu.",
        "| onnxruntime | yes |",
        "apache-2.0, carried over from `Qwen/Qwen3-VL-2B-Instruct`.",
    ):
        assert told in card.text


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"engine": None}, "| transformers, vLLM | no"),  # its weights are not safetensors in this test
        ({"engine": {"runtime": "TensorRT for RTX", "target": "sm89"}}, "| TensorRT for RTX | sm89 only |"),
        (
            {"engine": {"runtime": "TensorRT for RTX", "target": "sm89"}},
            "import tensorrt_rtx_bindings as trt",
        ),
        ({"engine": {"runtime": "TensorRT", "target": "sm90"}}, "| TensorRT | sm90 only |"),
        ({"engine": {"runtime": "TensorRT", "target": "sm90"}}, "import tensorrt as trt"),
        ({"source": {"repo": "mine"}}, "`mine` declares no licence: ask its owner"),
        (
            {"source": {"repo": "mine", "commit": "a" * 40, "dirty": True}},
            "with changes that are in no commit",
        ),
    ],
)
def test_the_card_says_what_the_manifest_says(tmp_path: Path, facts: dict[str, Any], told: str) -> None:
    folder = publish_variant(tmp_path, "gptq-int4-onnx")
    manifest = Manifest.read(folder).model_copy(update=facts)
    assert told in model_card(folder, "qwen3-vl-micro", manifest)


def test_layers_in_8_bits_are_told(tmp_path: Path) -> None:
    receipt = {name: INT4[name] for name in ("method", "bits", "group_size", "symmetric")}
    receipt |= {"calibration": {"sha256": "abc123"}}
    assert quantization_fields(receipt) == INT4 | {"calibration": "abc123"}
    mixed = quantization_fields(receipt | {"eight_bit": (0, 3)})
    folder = publish_variant(tmp_path, "gptq-int4-onnx", quantization=mixed)
    assert Manifest.read(folder).quantization == INT4 | {"calibration": "abc123", "eight_bit_layers": [0, 3]}
    card = model_card(folder, "m", Manifest.read(folder))
    assert "decoder linears. In 8 bits: decoder layers 0, 3, counted from 0. Calibration set" in card


def test_the_calibration_receipt_is_told(tmp_path: Path) -> None:
    folder = publish_variant(tmp_path, "gptq-int4-onnx", quantization=INT4 | {"calibration": "abc123"})
    receipt = {"sha256": "abc123", "samples": 128, "tokens": 65_536, "images": 32}
    (folder / "evidence" / "calibration.json").write_text(json.dumps(receipt))
    card = model_card(folder, "m", Manifest.read(folder))
    assert "sha256 `abc123` (128 samples, 65,536 tokens, 32 images)" in card


def test_the_bill_of_materials_is_valid(staged: Path) -> None:
    document = json.loads((staged / "attestations" / "sbom.cdx.json").read_text())
    schemas = files("cyclonedx.schema") / "_res"
    names = ("spdx.SNAPSHOT.schema.json", "jsf-0.82.SNAPSHOT.schema.json")
    registry = jsonschema_rs.Registry(
        [(f"http://cyclonedx.org/schema/{name}", json.loads((schemas / name).read_text())) for name in names]
    )
    schema = json.loads((schemas / "bom-1.6.SNAPSHOT.schema.json").read_text())
    jsonschema_rs.validator_for(schema, registry=registry).validate(document)
    model = document["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"] == [{"license": {"id": "Apache-2.0"}}]
    assert model["pedigree"]["ancestors"][0]["name"] == "Qwen/Qwen3-VL-2B-Instruct"
    assert {part["name"] for part in model["components"]} == set(Manifest.read(staged).files)
    assert model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]["value"] == "94.9"
    assert document["components"][0]["purl"] == "pkg:pypi/numpy@2.4.6"


def test_the_provenance_names_every_file(staged: Path) -> None:
    text = (staged / "attestations" / "provenance.intoto.json").read_text()
    statement = Statement.copy_from_pb(Parse(text, statement_pb2.Statement()))
    statement.validate()
    assert statement.pb.predicate_type == "https://slsa.dev/provenance/v1"
    named = {subject.name: subject.digest["sha256"] for subject in statement.pb.subject}
    paths = {str(path.relative_to(staged)): path for path in staged.rglob("*") if path.is_file()}
    assert named == {
        name: hash_file(path).sha256 for name, path in paths.items() if not name.startswith("attestations/")
    }


def test_staging_again_gives_the_same_bytes(tmp_path: Path) -> None:
    artifact = publish_variant(tmp_path, "gptq-int4-onnx")
    found = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        stage(artifact, tmp_path / name, None)
        paths = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        found.append([path.read_bytes() for path in paths])
    assert found[0] == found[1]


def test_only_what_passed_leaves_and_only_while_its_waivers_stand() -> None:
    waiver = {"check": "accuracy", "reason": "a demo", "expires": "2027-05-31", "status": "in force"}
    checks = [
        {"metric": m, "verdict": "FAIL", "reason": "worse", "waived": m == "accuracy"}
        for m in ("accuracy", "kl_mean")
    ]
    passed = {"verdict": "PASS", "checks": checks[:1], "waivers": [waiver]}
    assert refusal(passed, date(2027, 5, 31)) is None
    assert refusal(passed, date(2027, 6, 1)) == (
        "its waiver of accuracy has expired on 2027-05-31; build it again"
    )
    assert refusal(passed | {"waivers": [waiver | {"status": "expired"}]}, date(2027, 6, 1)) is None
    assert refusal({"verdict": "FAIL", "checks": checks, "waivers": [waiver]}) == "gate FAIL: kl_mean: worse"
    assert refusal({"verdict": "FAIL", "checks": [], "waivers": []}) == "gate FAIL: no check is left to pass"
    assert str(refusal({})).startswith("no gate")
