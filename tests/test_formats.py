"""The three layouts hold the same weights, and those that transformers and the ONNX graphs compute with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import CompressedTensorsConfig, Qwen3VLForConditionalGeneration

from bench.micro.tasks import generate
from bench.tasks import write_items
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.export import export
from engines.generate import generate_batch
from engines.int4 import Int4
from engines.onnx_session import OnnxSession
from engines.processor import Processor
from engines.reference import ReferenceSession
from quantize.layers import LINEARS
from quantize.pipeline import quantize_checkpoint
from quantize.writer import FORMATS, write_safetensors
from tests.checkpoints import write_checkpoint

GROUP = 32
LAYER = "model.language_model.layers.1"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "set.jsonl"
    write_items(path, generate("calibration", 32, seed=0))
    return path


@pytest.fixture(scope="module")
def layouts(
    micro_checkpoint: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The micro checkpoint by AWQ, which changes more than the linears, in every layout."""
    folder = tmp_path_factory.mktemp("layouts")
    for layout in FORMATS:
        quantize_checkpoint(
            micro_checkpoint,
            folder / layout,
            method="awq",
            group_size=GROUP,
            calibration=calibration,
            work_dir=folder / "work",
            format=layout,
        )
    return {layout: folder / layout for layout in FORMATS}


def linear_names(checkpoint: Checkpoint) -> list[str]:
    layers = checkpoint.config.text.num_hidden_layers
    return [f"model.language_model.layers.{index}.{name}" for index in range(layers) for name in LINEARS]


def int4(checkpoint: Checkpoint, name: str) -> Int4:
    weight = checkpoint.weight(name)
    assert isinstance(weight, Int4)
    return weight


def unpack(words: torch.Tensor) -> NDArray[np.int64]:
    """int32 [R, C] -> its eight 4-bit fields, lowest first [R, C, 8], one shift at a time."""
    unsigned = words.numpy().view(np.uint32).astype(np.int64)
    return np.stack([(unsigned >> (4 * slot)) & 15 for slot in range(8)], axis=-1)


def by_autogptq(tensors: dict[str, torch.Tensor], name: str) -> NDArray[np.float32]:
    """AutoGPTQ v1's dequantisation: scales[g_idx] * (q - (z + 1)), inputs first."""
    part = {key: tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales", "g_idx")}
    codes = unpack(part["qweight"]).transpose(0, 2, 1)  # eight rows of K in every word
    codes = codes.reshape(-1, codes.shape[-1])
    zeros = unpack(part["qzeros"]).reshape(len(part["qzeros"]), -1) + 1
    groups = part["g_idx"].numpy()
    scales = part["scales"].float().numpy()
    return ((codes - zeros[groups]) * scales[groups]).T.astype(np.float32)


def by_autoawq(tensors: dict[str, torch.Tensor], name: str) -> NDArray[np.float32]:
    """AWQ GEMM's dequantisation: scales * (q - z), inputs first, columns interleaved within every word."""
    part = {key: tensors[f"{name}.{key}"] for key in ("qweight", "qzeros", "scales")}
    columns = [0, 4, 1, 5, 2, 6, 3, 7]  # slot that holds output column 0, 1, 2, ... of the eight
    codes = unpack(part["qweight"])[..., columns].reshape(len(part["qweight"]), -1)
    zeros = unpack(part["qzeros"])[..., columns].reshape(len(part["qzeros"]), -1)
    groups = np.arange(len(codes)) // GROUP
    scales = part["scales"].float().numpy()
    return ((codes - zeros[groups]) * scales[groups]).T.astype(np.float32)


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_layouts_hold_the_same_codes_scales_and_dense_tensors(layouts: dict[str, Path], layout: str) -> None:
    expected, found = Checkpoint.open(layouts["compressed-tensors"]), Checkpoint.open(layouts[layout])
    linears = linear_names(expected)
    for name in linears:
        assert np.array_equal(int4(found, name).codes, int4(expected, name).codes)
        assert np.array_equal(int4(found, name).scales, int4(expected, name).scales)
    dense = {name for name in expected.names() if name.rpartition(".")[0] not in linears}
    assert dense == {name for name in found.names() if name.rpartition(".")[0] not in linears}
    assert all(np.array_equal(found.tensor(name), expected.tensor(name)) for name in dense)


@pytest.mark.parametrize(("layout", "dequantize"), [("gptq", by_autogptq), ("awq", by_autoawq)])
def test_layouts_follow_their_tools_formulas(layouts: dict[str, Path], layout: str, dequantize: Any) -> None:
    tensors = load_file(layouts[layout] / "model.safetensors")
    checkpoint = Checkpoint.open(layouts["compressed-tensors"])
    for name in LINEARS:
        expected = int4(checkpoint, f"{LAYER}.{name}").dequantize()
        assert np.array_equal(dequantize(tensors, f"{LAYER}.{name}"), expected)


@pytest.mark.parametrize(
    ("layout", "fields"),
    [
        ("compressed-tensors", {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
        ("gptq", {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}),
        ("awq", {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    ],
)
def test_config_names_the_layout(
    layouts: dict[str, Path], micro_checkpoint: Path, layout: str, fields: dict[str, Any]
) -> None:
    config = json.loads((layouts[layout] / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert quantization.items() >= fields.items()
    assert config == json.loads((micro_checkpoint / "config.json").read_text())


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_transformers_loads_the_same_weights_bit_for_bit(layouts: dict[str, Path], dtype: str) -> None:
    checkpoint = Checkpoint.open(layouts["compressed-tensors"])
    model = Qwen3VLForConditionalGeneration.from_pretrained(
        checkpoint.path, dtype=dtype, quantization_config=CompressedTensorsConfig(dequantize=True)
    )
    for name in linear_names(checkpoint):
        loaded = model.get_submodule(name).weight
        assert str(loaded.dtype) == f"torch.{dtype}"
        # Scales have 8 significant bits and codes 3, so the products are exact in float16 too.
        assert np.array_equal(loaded.detach().float().numpy(), int4(checkpoint, name).dequantize())
    norm = f"{LAYER}.input_layernorm.weight"
    assert np.array_equal(model.get_parameter(norm).detach().float().numpy(), checkpoint.tensor(norm))


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_reference_runs_every_layout_alike(layouts: dict[str, Path], layout: str) -> None:
    processor = Processor.load(layouts[layout])
    prompts = [processor(item.messages) for item in generate("test", 4, seed=3)]
    capacity = max(len(prompt.input_ids) for prompt in prompts)
    found, expected = (
        ReferenceSession(layouts[name], dtype="float32").prefill(prompts, capacity=capacity)[0]
        for name in (layout, "compressed-tensors")
    )
    assert np.array_equal(found, expected)


def test_onnx_graphs_give_the_same_greedy_tokens(layouts: dict[str, Path], tmp_path: Path) -> None:
    source = layouts["compressed-tensors"]
    export(Checkpoint.open(source), tmp_path / "onnx", accuracy_level=0)
    processor = Processor.load(source)
    prompts = [processor(item.messages) for item in generate("test", 60, seed=3)]
    expected = generate_batch(ReferenceSession(source, dtype="float32"), processor, prompts, 8)
    found = generate_batch(OnnxSession(tmp_path / "onnx"), processor, prompts, 8)
    assert [answer.token_ids for answer in found] == [answer.token_ids for answer in expected]
    assert len({answer.text for answer in found}) > 10


def test_rows_that_do_not_fill_words_are_refused_before_any_work(
    micro_checkpoint: Path, calibration: Path, tmp_path: Path
) -> None:
    source = write_checkpoint(
        tmp_path / "source", micro_checkpoint, intermediate_size=96, heads=2, head_dim=18
    )
    settings: dict[str, Any] = {"group_size": 32, "calibration": calibration, "work_dir": tmp_path / "work"}
    with pytest.raises(UserError, match="q_proj has 36 output rows, not a multiple of 8"):
        quantize_checkpoint(source, tmp_path / "out", method="rtn", format="awq", **settings)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (0,), ()])
def test_written_tensors_read_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tensors = {
        "b": np.full(shape, 7, np.int64),
        "a": np.full(shape, 1.5, np.float16),
        "c": np.full(shape, 3, np.uint8),
    }
    write_safetensors(tmp_path / "x.safetensors", tensors)
    loaded = load_file(tmp_path / "x.safetensors")
    assert {name: value.tolist() for name, value in loaded.items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
