"""Planted faults are named by where they are; rounding, well or plainly done, is not taken for one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from bench.__main__ import main
from bench.divergence import Divergence, first_divergence
from bench.suites.catalogue import load_suite
from engines import images, processor, videos
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.export import export, export_standard
from engines.processor import Processor
from tests.checkpoints import edit_json
from tests.int4_checkpoints import write_int4_pair

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

TASKS = ("atlas", "flag", "image_color", "video_order")
LAYER = "model.language_model.layers.2"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def variants(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded checkpoint and what is rightly made of it."""
    folder = tmp_path_factory.mktemp("variants")
    found = {"fp16": micro_checkpoint, "int4": write_int4_pair(micro_checkpoint, folder, 128)[0]}
    for name in ("fp16", "int4"):
        found[f"{name} onnx"] = folder / f"{name}-onnx"
        export(Checkpoint.open(found[name]), found[f"{name} onnx"])
    prompts = [Processor.load(micro_checkpoint)(item.messages) for item in load_suite("micro", 20, 1)]
    found["int4 onnx, int8 cache"] = folder / "int4-onnx-kv8"
    export(Checkpoint.open(found["int4"]), found["int4 onnx, int8 cache"], cache_prompts=prompts)
    for name, weights in (("int4", None), ("fp16", "fp8")):
        made = found[f"{name} standard {weights or ''}".strip()] = folder / f"{name}-{weights}"
        export_standard(Checkpoint.open(found[name]), made, weights=weights)
    return found


def against(baseline: Path, candidate: Path, **options: Any) -> Divergence:
    items = {item.task: item for item in load_suite("micro", 60, 0)}
    return first_divergence(baseline, candidate, items=[items[task] for task in TASKS], threads=1, **options)


def edited(source: Path, folder: Path, change: Edit) -> Path:
    """A copy of a checkpoint with other tensors."""
    shutil.copytree(source, folder)
    tensors = {name: array.copy() for name, array in load_file(source / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "fp16",
        "int4",
        "fp16 onnx",
        "int4 onnx",
        "int4 onnx, int8 cache",
        "int4 standard",
        "fp16 standard fp8",
    ],
)
def test_rounding_is_expected(variants: dict[str, Path], name: str) -> None:
    found = against(variants["fp16"], variants[name])
    assert found.place is None, found.detail
    names = {row.place for row in found.rows}
    assert {
        "pixels",
        "prompt",
        "vision block 2",
        "deepstack 1",
        "mRoPE",
        "decoder layer 3",
        "logits",
    } <= names


def scales(tensors: dict[str, Any]) -> None:
    tensors[f"{LAYER}.mlp.down_proj.weight_scale"] *= np.float16(1.2)


def codes_of_a_head(tensors: dict[str, Any]) -> None:
    tensors[f"{LAYER}.self_attn.o_proj.weight_packed"][:, 4:8] = -2004318072  # eight codes of 8: zeros


def weights_of_a_head(tensors: dict[str, Any]) -> None:
    tensors[f"{LAYER}.self_attn.o_proj.weight"][:, 32:64] = 0


def rows_of_the_head(tensors: dict[str, Any]) -> None:
    tensors["model.language_model.embed_tokens.weight"][100:110] = 0


def vision_block(tensors: dict[str, Any]) -> None:
    tensors["model.visual.blocks.1.mlp.linear_fc2.weight"] *= np.float16(1.2)


@pytest.mark.parametrize("graphs", [False, True], ids=["checkpoint", "onnx"])
@pytest.mark.parametrize(
    ("source", "change", "place"),
    [
        ("int4", scales, "decoder layer 2"),
        ("int4", codes_of_a_head, "decoder layer 2"),
        ("fp16", weights_of_a_head, "decoder layer 2"),
        ("fp16", rows_of_the_head, "logits"),  # of tokens that no prompt has: a tied head is the embedding
        ("fp16", vision_block, "vision block 1"),
    ],
)
def test_a_damaged_weight_is_named(
    variants: dict[str, Path], tmp_path: Path, graphs: bool, source: str, change: Edit, place: str
) -> None:
    candidate = edited(variants[source], tmp_path / "damaged", change)
    if graphs:
        export(Checkpoint.open(candidate), tmp_path / "onnx")
        candidate = tmp_path / "onnx"
    found = against(variants["fp16"], candidate)
    assert found.place == place, found.detail
    assert place in found.detail


@pytest.mark.parametrize("graphs", [False, True], ids=["checkpoint", "onnx"])
@pytest.mark.parametrize(
    ("setting", "value", "place"),
    [
        ("vision_config__deepstack_visual_indexes", [1, 0], "deepstack 0"),
        ("text_config__rope_parameters__mrope_section", [8, 4, 4], "mRoPE"),
    ],
)
def test_a_wrong_setting_is_named(
    variants: dict[str, Path], tmp_path: Path, graphs: bool, setting: str, value: Any, place: str
) -> None:
    candidate = Path(shutil.copytree(variants["fp16"], tmp_path / "wrong"))
    edit_json(candidate / "config.json", **{setting: value})
    if graphs:
        export(Checkpoint.open(candidate), tmp_path / "onnx")
        candidate = tmp_path / "onnx"
    found = against(variants["fp16"], candidate)
    assert found.place == place, found.detail


def test_deepstack_swapped_inside_the_decoder_is_named(variants: dict[str, Path], tmp_path: Path) -> None:
    """The tower is right, the graph that adds its features mixes them up."""
    candidate = Path(shutil.copytree(variants["int4 onnx"], tmp_path / "swapped"))
    model = onnx.load(candidate / "decoder.onnx", load_external_data=False)
    taps = [node for node in model.graph.node if node.name in ("deepstack.0", "deepstack.1")]
    taps[0].input[1], taps[1].input[1] = taps[1].input[1], taps[0].input[1]
    (candidate / "decoder.onnx").write_bytes(model.SerializeToString())
    found = against(variants["fp16"], candidate)
    assert (found.place, next(row.part for row in found.rows if row.diverges)) == ("deepstack 0", "added")


def test_a_zeroed_row_of_a_graphs_head_is_named(variants: dict[str, Path], tmp_path: Path) -> None:
    candidate = Path(shutil.copytree(variants["int4 onnx"], tmp_path / "zeroed"))
    model = onnx.load(candidate / "decoder.onnx", load_external_data=False)
    (scales,) = (tensor for tensor in model.graph.initializer if tensor.name == "lm_head.scales")
    where = {entry.key: int(entry.value) for entry in scales.external_data if entry.key != "location"}
    with (candidate / "decoder.onnx.data").open("r+b") as file:
        file.seek(where["offset"] + 4 * 300)  # one group of 128 columns to a row
        file.write(bytes(4))
    found = against(variants["fp16"], candidate)
    assert found.place == "logits", found.detail


def test_a_wrong_chat_template_is_named(variants: dict[str, Path], tmp_path: Path) -> None:
    candidate = Path(shutil.copytree(variants["int4 onnx"], tmp_path / "template"))
    template = candidate / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant\\n", "assistant"))
    assert against(variants["fp16"], candidate).place == "prompt"


def bilinear(patch: pytest.MonkeyPatch) -> None:
    def resize(image: Image.Image, height: int, width: int) -> Image.Image:
        return image.resize((width, height), Image.Resampling.BILINEAR)

    patch.setattr(images, "resize", resize)


def late(patch: pytest.MonkeyPatch) -> None:
    def prepare(source: Any, fps: float | None, config: Any) -> Any:
        pixels, grid, seconds = videos.prepare_video(source, fps, config)
        return pixels, grid, [*seconds[1:], seconds[-1] + 1]

    patch.setattr(processor, "prepare_video", prepare)


@pytest.mark.parametrize(("fault", "place"), [(bilinear, "pixels"), (late, "prompt")])
def test_a_faulty_processor_is_named(
    variants: dict[str, Path], fault: Callable[[pytest.MonkeyPatch], None], place: str
) -> None:
    right = Processor.load(variants["int4 onnx"])

    def faulty(messages: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            return right(messages)

    assert against(variants["fp16"], variants["int4 onnx"], processor=faulty).place == place


def test_command(variants: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = edited(variants["int4"], tmp_path / "damaged", scales)
    line = ["divergence", str(variants["fp16"]), str(damaged), "--items", "4", "--threads", "1"]
    assert main([*line, "--json"]) == 3
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["place"] == "decoder layer 2"
    first = next(row for row in document["places"] if row["diverges"])
    assert (first["place"], first["part"]) == ("decoder layer 2", "mlp")
    assert main(["divergence", *line[1:2], str(variants["fp16 onnx"]), *line[3:]]) == 0
    assert "nothing is farther" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(variants: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="16-bit"):
        against(variants["int4"], variants["int4"])
    compiled = Path(shutil.copytree(variants["fp16 onnx"], tmp_path / "compiled"))
    (compiled / "engine.json").write_text("{}")
    with pytest.raises(UserError, match="compiled engines"):
        against(variants["fp16"], compiled)
    long = load_suite("needle-1k", 1, 0)
    with pytest.raises(UserError, match="512 tokens"):
        first_divergence(variants["fp16"], variants["fp16"], items=long, threads=1)
