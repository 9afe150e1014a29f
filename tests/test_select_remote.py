"""Selecting among the variants of a real registry: their weights are not even there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from build.__main__ import main
from build.release.modelpack import ARTIFACT
from build.release.reference import Reference
from build.release.registry import MANIFEST, Registry
from engines.errors import UserError
from serve.selected import select_policy
from tests.oci_registry import blob_file, oci_registry
from tests.published import INT4, publish_variant

pytestmark = pytest.mark.usefixtures("rates")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A repository with two variants, one of them twice, and something else; no weights in its storage."""
    folder = tmp_path_factory.mktemp("registry")
    with oci_registry(folder) as host:
        address = f"oci://{host}/team/qwen"
        older = publish_variant(
            folder / "old", "gptq-int4-onnx", e2e_ms=1, created="2026-01-01T00:00:00+00:00"
        )
        assert main(["publish", str(older), "--to", f"{address}:older"]) == 0
        for variant, facts in {
            "onnx-fp16": {"right": 96, "e2e_ms": 12, "quantization": None, "seed": 1},
            "gptq-int4-onnx": {"right": 94, "e2e_ms": 10, "quantization": INT4, "seed": 2},
        }.items():
            artifact = publish_variant(folder / "new", variant, **facts)  # type: ignore[arg-type]
            assert main(["publish", str(artifact), "--to", address]) == 0
        with Registry(Reference.parse(address)) as registry:
            plain = {"mediaType": MANIFEST, "schemaVersion": 2, **nothing(registry)}
            registry.put_manifest("image", plain)
            registry.put_manifest("other", plain | {"artifactType": ARTIFACT, "annotations": {}})
            for tag in ("older", "onnx-fp16", "gptq-int4-onnx"):
                stored = registry.manifest(tag)
                assert stored
                for layer in stored[1]["layers"]:
                    if layer["annotations"]["org.cncf.model.filepath"] == "decoder.onnx.data":
                        blob_file(folder, layer["digest"]).unlink()
        yield address


def nothing(registry: Registry) -> dict[str, Any]:
    """Config and layers of an image that is no model: blobs that are there already."""
    stored = registry.manifest("onnx-fp16")
    assert stored
    return {"config": stored[1]["config"], "layers": stored[1]["layers"][:1]}


def test_the_choice_is_made_without_weights(shelf: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["select", "--catalogue", shelf, "--device", "cpu", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out.splitlines()[-1])
    assert (found["choice"], found["path"]) == ("gptq-int4-onnx", None)
    assert found["reference"].startswith(f"{shelf}@sha256:")
    row = next(row for row in found["reasons"] if row["variant"] == "gptq-int4-onnx")
    assert row["latency"] == {"e2e_latency_ms": 10, "ttft_ms": 2.5, "provenance": "measured here"}
    assert row["accuracy"]["percent"] == 94
    assert re.search(r"image is left out: .* expected a model", said.err)
    assert re.search(r"other is left out: .* expected MODEL/VARIANT", said.err)
    assert "is left out: an older qwen3-vl-micro/gptq-int4-onnx" in said.err
    assert len(found["reasons"]) == 2
    assert main(["select", "--catalogue", shelf, "--device", "cpu", "--objective", "accuracy"]) == 0
    told = capsys.readouterr().out
    assert f"choice: onnx-fp16 at {shelf}@sha256:" in told
    assert f"to have it: python -m build pull {shelf}@sha256:" in told
    assert main(["select", "--catalogue", shelf, "--device", "cpu", "--memory", "1MB"]) == 3


def test_one_tag_is_a_catalogue_of_one(shelf: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["select", "--catalogue", f"{shelf}:older", "--device", "cpu", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["reasons"]
    assert row["latency"]["e2e_latency_ms"] == 1


def test_serve_up_says_how_to_have_it(shelf: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"chose gptq-int4-onnx, which is not here; .*build pull oci://.*@sha256:"
    ):
        select_policy(["--catalogue", shelf, "--device", "cpu"], tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda shelf: f"{shelf}:none", "team/qwen has no none"),
        (lambda shelf: f"{shelf}:image", "has no variant; expected tags that"),
        (lambda shelf: f"{shelf}/nothing", "has no variant; expected tags that"),
        (lambda shelf: "https://h/a", "--catalogue https://h/a: expected a folder or oci://"),
    ],
)
def test_where_nothing_is_published(
    shelf: str, change: Any, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["select", "--catalogue", change(shelf), "--device", "cpu"]) == 1
    assert told in capsys.readouterr().err
