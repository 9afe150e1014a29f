"""What an exported folder holds: complete, compact, and the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file

from engines.artifact import hash_folder
from engines.checkpoint import SIDE_FILES, Checkpoint
from engines.errors import UserError
from engines.export import export, export_standard
from engines.graphs.fused import Fused
from engines.graphs.vision import vision
from engines.onnx_session import OnnxSession
from engines.onnx_vision import VisionTower
from engines.processor import Inputs, Media, Processor
from tests.checkpoints import write_checkpoint
from tests.int4_checkpoints import write_int4_pair


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "artifact"
    export(Checkpoint.open(micro_checkpoint), out)
    return out


@pytest.fixture(scope="module")
def int4_pair(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_int4_pair(micro_checkpoint, tmp_path_factory.mktemp("int4"))


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def test_equal_checkpoints_give_equal_bytes(micro_checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    export(Checkpoint.open(micro_checkpoint), tmp_path / "elsewhere" / "again")
    assert hash_folder(tmp_path / "elsewhere" / "again") == hash_folder(artifact)


def test_artifact_stands_alone(micro_checkpoint: Path, artifact: Path) -> None:
    graphs = {"vision.onnx", "vision.onnx.data", "decoder.onnx", "decoder.onnx.data", "embedding.bin"}
    side_files = {name for name in SIDE_FILES if (micro_checkpoint / name).is_file()}
    assert {path.name for path in artifact.iterdir()} == graphs | side_files
    assert side_files >= {"config.json", "tokenizer.json", "chat_template.jinja", "preprocessor_config.json"}
    assert Processor.load(artifact).config == Processor.load(micro_checkpoint).config


def test_weights_are_stored_once_in_16_bits(micro_checkpoint: Path, artifact: Path) -> None:
    weights = load_file(micro_checkpoint / "model.safetensors")
    matrices = sum(2 * weight.size for weight in weights.values() if weight.ndim > 1)
    files = ("embedding.bin", "vision.onnx.data", "decoder.onnx.data")
    stored = sum((artifact / name).stat().st_size for name in files)
    assert matrices <= stored <= 1.05 * matrices  # norms, biases and alignment are the rest
    table = np.fromfile(artifact / "embedding.bin", np.float16)
    np.testing.assert_array_equal(table, weights["model.language_model.embed_tokens.weight"].ravel())


EXPORTS: dict[str, Callable[[Checkpoint, Checkpoint, Path], None]] = {
    "fp16": lambda dense, int4, out: export(dense, out),
    "int4": lambda dense, int4, out: export(int4, out),
    "int4 exact": lambda dense, int4, out: export(int4, out, accuracy_level=0),
    "int8 cache": lambda dense, int4, out: export(int4, out, cache_prompts=[Inputs.text([5, 9, 77])]),
    "standard fp16": lambda dense, int4, out: export_standard(dense, out),
    "standard int4": lambda dense, int4, out: export_standard(int4, out),
    "standard fp8": lambda dense, int4, out: export_standard(dense, out, weights="fp8"),
    "standard nvfp4": lambda dense, int4, out: export_standard(dense, out, weights="nvfp4"),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_every_graph_passes_onnx_s_checker(
    micro_checkpoint: Path, int4_pair: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """Every node against its operator's definition, and the shapes that follow against those declared."""
    EXPORTS[name](Checkpoint.open(micro_checkpoint), Checkpoint.open(int4_pair[0]), tmp_path)
    for path in (tmp_path / "vision.onnx", tmp_path / "decoder.onnx"):
        onnx.checker.check_model(path, full_check=True)
        model = onnx.load(path, load_external_data=False)
        domains = {entry.domain for entry in model.opset_import}
        assert domains == {node.domain for node in model.graph.node}
        assert domains == ({""} if name.startswith("standard") else {"", "com.microsoft"})


@pytest.mark.parametrize("name", ["vision.onnx", "decoder.onnx"])
def test_graphs_use_every_input(artifact: Path, name: str) -> None:
    graph = onnx.load(artifact / name, load_external_data=False).graph
    used = {value for node in graph.node for value in node.input}
    assert {value.name for value in graph.input} <= used
    assert {tensor.name for tensor in graph.initializer} <= used
    for tensor in graph.initializer:
        assert int(external(tensor).get("offset", 0)) % 4096 == 0
        assert "/" not in external(tensor).get("location", "")


def test_equal_constants_are_shared(artifact: Path) -> None:
    graph = onnx.load(artifact / "decoder.onnx", load_external_data=False).graph
    integers = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT64]
    contents = [(tuple(t.dims), t.raw_data) for t in integers]
    assert len(contents) == len(set(contents)) > 0


def test_bfloat16_beyond_fp16_is_refused(micro_checkpoint: Path, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "checkpoint", micro_checkpoint, dtype=torch.bfloat16)
    tensors = safetensors.torch.load_file(directory / "model.safetensors")
    tensors["model.visual.blocks.1.mlp.linear_fc1.weight"][3, 5] = 1e5
    safetensors.torch.save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"visual\.blocks\.1\.mlp\.linear_fc1\S* holds 99840, fp16 ends at 65504"
    ):
        export(Checkpoint.open(directory), tmp_path / "out")


def test_int4_graph_computes_what_its_codes_say(int4_pair: tuple[Path, Path], tmp_path: Path) -> None:
    packed, dense = int4_pair
    export(Checkpoint.open(packed), tmp_path / "exact", accuracy_level=0)
    export(Checkpoint.open(packed), tmp_path / "fast")
    export(Checkpoint.open(dense), tmp_path / "dense")
    prompt = Inputs.text([3, 141, 59, 26, 5, 358])

    def logits(name: str) -> Any:
        return OnnxSession(tmp_path / name, threads=1).prefill([prompt], capacity=8, keep=6)[0]

    expected, exact = logits("dense"), logits("exact")
    best = np.argsort(-expected, axis=-1)[..., :16]
    wanted, found, fast = (np.take_along_axis(x, best, -1) for x in (expected, exact, logits("fast")))
    scale = np.linalg.norm(wanted)
    assert np.linalg.norm(found - wanted) <= 1e-5 * scale
    assert 1e-5 * scale < np.linalg.norm(fast - wanted) <= 0.03 * scale
    # The tail comes from a head in 4 bits: close, and never ahead of the best.
    assert 1e-3 < np.linalg.norm(exact - expected) / np.linalg.norm(expected) < 0.15
    assert (exact.argmax(-1) == expected.argmax(-1)).all()


@pytest.mark.parametrize("write", [partial(export, accuracy_level=0), export_standard])
def test_a_head_that_came_in_4_bits_is_computed_from_them(
    micro_checkpoint: Path, tmp_path: Path, write: Callable[[Checkpoint, Path], None]
) -> None:
    untied = write_checkpoint(tmp_path / "checkpoint", micro_checkpoint, tied=False)
    packed, dense = write_int4_pair(untied, tmp_path, head=True)
    for source in (packed, dense):
        write(Checkpoint.open(source), tmp_path / f"{source.name} graphs")
    found, expected = (
        OnnxSession(tmp_path / f"{name} graphs", threads=1).prefill([Inputs.text([3, 14, 15])], capacity=4)[0]
        for name in ("packed", "dense")
    )
    assert np.linalg.norm(found - expected) <= 2e-3 * np.linalg.norm(expected)


def test_int4_weights_stay_4_bits(int4_pair: tuple[Path, Path], tmp_path: Path) -> None:
    export(Checkpoint.open(int4_pair[0]), tmp_path, accuracy_level=4)
    graph = onnx.load(tmp_path / "decoder.onnx", load_external_data=False).graph
    attributes = [
        {a.name: a.i for a in node.attribute} for node in graph.node if node.op_type == "MatMulNBits"
    ]
    layers = Checkpoint.open(int4_pair[0]).config.text.num_hidden_layers
    assert len(attributes) == 4 * layers + 1  # q+k+v, o, gate+up, down; the head
    assert {(a["bits"], a["accuracy_level"]) for a in attributes} == {(4, 4)}
    assert sorted(a["block_size"] for a in attributes) == [32] * 4 * layers + [128]
    codes = [t for t in graph.initializer if t.name.endswith(".codes")]
    assert all(t.data_type == onnx.TensorProto.UINT8 for t in codes)
    assert sum(np.prod(t.dims) for t in codes) == sum(a["N"] * a["K"] // 2 for a in attributes)


def test_a_dense_checkpoint_keeps_its_vision_tower_in_16_bits(
    micro_checkpoint: Path, int4_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    def products(checkpoint: Path, name: str, **options: Any) -> set[str]:
        export(Checkpoint.open(checkpoint), tmp_path / name, **options)
        graph = onnx.load(tmp_path / name / "vision.onnx", load_external_data=False).graph
        return {node.op_type for node in graph.node} & {"MatMul", "DynamicQuantizeMatMul"}

    assert products(micro_checkpoint, "dense") == {"MatMul"}
    assert products(int4_pair[0], "exact", accuracy_level=0) == {"MatMul"}
    assert products(int4_pair[0], "fast") == {"MatMul", "DynamicQuantizeMatMul"}


def test_int8_vision_is_close_row_by_row(int4_pair: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(int4_pair[0])
    for name, int8 in (("vision.onnx", False), ("int8.onnx", True)):
        with Fused(tmp_path / name, int8=int8) as graph:
            vision(graph, checkpoint)
    shape = checkpoint.config.vision
    width = shape.in_channels * shape.temporal_patch_size * shape.patch_size**2
    pixels = np.random.default_rng(0).uniform(-1, 1, (24, width)).astype(np.float32)
    pixels[:4] *= 1e-3  # a dark corner, which one scale for all rows would blot out
    media = Media("image", (1, 4, 6), pixels)
    exact, rounded = (
        VisionTower(tmp_path / name, checkpoint.config, 1, "CPUExecutionProvider")._encode(media)
        for name in ("vision.onnx", "int8.onnx")
    )
    error = np.linalg.norm(rounded - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
    assert 1e-4 < error.max() < 0.05


def test_an_image_too_large_for_its_engine_is_refused(int4_pair: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(int4_pair[0])
    with Fused(tmp_path / "vision.onnx") as graph:
        vision(graph, checkpoint)
    shape = checkpoint.config.vision
    width = shape.in_channels * shape.temporal_patch_size * shape.patch_size**2
    media = Media("image", (1, 4, 6), np.zeros((24, width), np.float32))
    provider = "CPUExecutionProvider"
    VisionTower(tmp_path / "vision.onnx", checkpoint.config, 1, provider, patches=24)._encode(media)
    with pytest.raises(UserError, match="an image of 24 patches, these engines take 20: send a smaller one"):
        VisionTower(tmp_path / "vision.onnx", checkpoint.config, 1, provider, patches=20)._encode(media)


def test_int8_cache_stores_bytes_and_stays_close(int4_pair: tuple[Path, Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(int4_pair[0])
    prompts = [Inputs.text(list(range(start, start + 40))) for start in (3, 90, 200)]
    export(checkpoint, tmp_path / "wide")
    export(checkpoint, tmp_path / "int8", cache_prompts=prompts)
    wide, narrow = (OnnxSession(tmp_path / name, threads=1) for name in ("wide", "int8"))
    (expected, one), (found, other) = (
        session.prefill(prompts[:2], capacity=48) for session in (wide, narrow)
    )
    for key, value in other.state.keys_values.items():
        assert value.numpy().dtype == np.int8
        assert abs(value.numpy()).max() >= 120, key  # the range is used
        assert 4 * value.numpy().nbytes == one.state.keys_values[key].numpy().nbytes
    for _ in range(4):
        assert 1e-5 < np.linalg.norm(found - expected) / np.linalg.norm(expected) < 0.05
        tokens = expected.reshape(2, -1).argmax(-1)
        expected, found = wide.decode(tokens, one), narrow.decode(tokens, other)


def test_equal_prompts_give_an_equal_int8_cache(int4_pair: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = [Inputs.text([5, 9, 77, 301, 12])]
    for name in ("one", "two"):
        export(Checkpoint.open(int4_pair[0]), tmp_path / name, cache_prompts=prompts)
    graphs = [(tmp_path / name / "decoder.onnx").read_bytes() for name in ("one", "two")]
    assert graphs[0] == graphs[1]
