"""What layers cost in 4 bits, measured once more by whole models; the fewest in 8 bits that meet a limit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.numpy import load_file
from transformers import Qwen3VLForConditionalGeneration

from bench.micro.tasks import generate
from bench.tasks import write_items
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.export import export, export_standard
from engines.int4 import Int4
from engines.int8 import Int8
from engines.onnx_session import OnnxSession
from engines.packing import from_compressed_tensors, to_compressed_tensors
from engines.processor import Inputs, Processor
from engines.reference import ReferenceSession
from quantize.__main__ import main
from quantize.calibration import prepare, read_samples
from quantize.layers import LINEARS
from quantize.pipeline import quantize_checkpoint
from quantize.rtn import rtn8
from quantize.sensitivity import TAIL, sample
from tests.checkpoints import edit_json

LAYERS = 4


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calibration") / "set.jsonl"
    write_items(path, generate("calibration", 40, seed=0))
    return path


def run(checkpoint: Path, out: Path, calibration: Path, **options: Any) -> dict[str, Any]:
    return quantize_checkpoint(
        checkpoint,
        out,
        method="awq",  # which changes norms too
        group_size=128,
        calibration=calibration,
        work_dir=out.with_suffix(".work"),
        **options,
    )


@pytest.fixture(scope="module")
def measured(
    micro_checkpoint: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("measured") / "int4"
    return folder, run(micro_checkpoint, folder, calibration, sensitivity=True)


@pytest.fixture(scope="module")
def mixed(
    micro_checkpoint: Path,
    calibration: Path,
    measured: tuple[Path, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, Any]]:
    """At most two thirds of what 4 bits cost in all."""
    folder = tmp_path_factory.mktemp("mixed") / "mixed"
    return folder, run(micro_checkpoint, folder, calibration, max_kl=measured[1]["kl"] * 2 / 3)


def prompts(checkpoint: Path, calibration: Path) -> list[Inputs]:
    return sample(prepare(read_samples(calibration), Processor.load(checkpoint)))


def kl(baseline: Path, found: Path, asked: list[Inputs]) -> float:
    """By whole models, at the same positions."""
    rows = []
    for folder in (baseline, found):
        session = ReferenceSession(folder, dtype="float32")
        logits, _ = session.prefill(asked, capacity=512, keep=TAIL)
        rows.append(torch.from_numpy(logits).double().log_softmax(-1))
    return float((rows[0].exp() * (rows[0] - rows[1])).sum(-1).mean())


def test_cost_of_all_layers_is_that_of_the_checkpoint(
    micro_checkpoint: Path,
    calibration: Path,
    measured: tuple[Path, dict[str, Any]],
    mixed: tuple[Path, dict[str, Any]],
) -> None:
    asked = prompts(micro_checkpoint, calibration)
    for folder, found in (measured, mixed):
        assert found["kl"] == pytest.approx(kl(micro_checkpoint, folder, asked), rel=1e-3)


def test_the_worst_layers_are_kept_and_no_more(
    measured: tuple[Path, dict[str, Any]], mixed: tuple[Path, dict[str, Any]]
) -> None:
    costs, kept = mixed[1]["sensitivity"], mixed[1]["eight_bit"]
    assert costs == pytest.approx(measured[1]["sensitivity"])
    assert measured[1]["eight_bit"] == ()
    assert len(costs) == LAYERS
    assert 0 < len(kept) < LAYERS
    assert max(costs[i] for i in range(LAYERS) if i not in kept) <= min(costs[i] for i in kept)
    assert mixed[1]["kl"] <= measured[1]["kl"] * 2 / 3
    stored = Checkpoint.open(mixed[0])
    for index in range(LAYERS):
        for name in LINEARS:
            weight = stored.weight(f"model.language_model.layers.{index}.{name}")
            assert isinstance(weight, Int8 if index in kept else Int4)


def test_kept_layers_are_close_to_the_16_bit_ones(
    micro_checkpoint: Path, mixed: tuple[Path, dict[str, Any]]
) -> None:
    source, stored = Checkpoint.open(micro_checkpoint), Checkpoint.open(mixed[0])
    prefix = f"model.language_model.layers.{mixed[1]['eight_bit'][0]}"
    for name in LINEARS:
        weight, exact = stored.weight(f"{prefix}.{name}"), source.tensor(f"{prefix}.{name}.weight")
        assert isinstance(weight, Int8)
        steps = np.repeat(weight.scales.astype(np.float32), weight.group_size, axis=1)
        assert (np.abs(weight.dequantize() - exact) <= 0.51 * steps + 1e-7).mean() > 0.999
    norm = f"{prefix}.input_layernorm.weight"
    assert np.array_equal(stored.tensor(norm), source.tensor(norm))  # AWQ's scales are not in there


def test_transformers_runs_both_kinds(mixed: tuple[Path, dict[str, Any]]) -> None:
    """As compressed modules; its `dequantize=True` takes every linear for one of the first group."""
    prompt = Processor.load(mixed[0])([{"role": "user", "content": "Code of Vitono?"}])
    ours, _ = ReferenceSession(mixed[0], dtype="float32").prefill([prompt], capacity=64)
    model = Qwen3VLForConditionalGeneration.from_pretrained(mixed[0], dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(prompt.input_ids)[None], logits_to_keep=1).logits[0].float().numpy()
    assert np.abs(theirs - ours[0]).max() < 1e-3


@pytest.mark.parametrize("make", [lambda c, out: export(c, out, accuracy_level=0), export_standard])
def test_graphs_compute_both_kinds(mixed: tuple[Path, dict[str, Any]], tmp_path: Path, make: Any) -> None:
    make(Checkpoint.open(mixed[0]), tmp_path / "graphs")
    items = [item for item in generate("test", 20, 0) if item.task in ("atlas", "flag")][:4]
    asked = [Processor.load(mixed[0])(item.messages) for item in items]
    expected, _ = ReferenceSession(mixed[0], dtype="float32").prefill(asked, capacity=128)
    found, _ = OnnxSession(tmp_path / "graphs", threads=1).prefill(asked, capacity=128)
    assert (found.argmax(-1) == expected.argmax(-1)).all()
    best = expected.argmax(-1)[:, 0]
    rows = np.arange(len(asked))
    assert np.abs(found[rows, 0, best] - expected[rows, 0, best]).max() < 0.05


def test_products_of_kept_layers_have_8_bits(mixed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    export(Checkpoint.open(mixed[0]), tmp_path)
    model = onnx.load(tmp_path / "decoder.onnx", load_external_data=False)
    bits = {
        node.name: onnx.helper.get_node_attr_value(node, "bits")
        for node in model.graph.node
        if node.op_type == "MatMulNBits" and ".layers." in node.name
    }
    kept = tuple(f"model.language_model.layers.{index}." for index in mixed[1]["eight_bit"])
    assert len(bits) == 4 * LAYERS
    assert {name for name, count in bits.items() if count == 8} == {n for n in bits if n.startswith(kept)}


def test_packing_is_that_of_compressed_tensors() -> None:
    weight = rtn8(torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), 32)
    packed = to_compressed_tensors(weight)
    signed = torch.from_numpy((weight.codes - np.uint8(128)).view(np.int8))
    assert np.array_equal(packed["weight_packed"], pack_to_int32(signed, 8).numpy())
    back = from_compressed_tensors(packed)
    assert isinstance(back, Int8)
    assert np.array_equal(back.codes, weight.codes)
    assert np.array_equal(back.scales, weight.scales)


def test_what_the_config_says_of_bits_has_to_be_true(
    mixed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        (tmp_path / name).write_bytes((mixed[0] / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes((mixed[0] / "model.safetensors").read_bytes())
    group = "quantization_config__config_groups__group_1"
    edit_json(tmp_path / "config.json", **{f"{group}__targets": ["re:.*layers.9.*"]})
    with pytest.raises(UserError, match="quantised weight of shape"):
        Checkpoint.open(tmp_path)
    edit_json(tmp_path / "config.json", **{f"{group}__targets": ["Linear"]})
    with pytest.raises(UserError, match="re:PATTERN"):
        Checkpoint.open(tmp_path)
    edit_json(tmp_path / "config.json", **{f"{group}__weights__group_size": 64})
    with pytest.raises(UserError, match="same size"):
        Checkpoint.open(tmp_path)


def test_command(
    micro_checkpoint: Path, calibration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = [str(micro_checkpoint), "--method", "rtn", "--calibration", str(calibration)]
    assert main([*line, "-o", str(tmp_path / "out"), "--sensitivity"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + LAYERS + 1
    costs = [float(row.split("KL ")[1].split()[0]) for row in printed[1:]]
    assert costs[:-1] == sorted(costs[:-1], reverse=True)
    assert json.loads((tmp_path / "out" / "quantization.json").read_text())["eight_bit"] == []
    assert main([*line, "-o", str(tmp_path / "none"), "--max-kl", "1e-9"]) == 1
    assert "8 bits are at a KL of" in capsys.readouterr().err
    assert main([*line, "-o", str(tmp_path / "none"), "--max-kl", "1", "--format", "awq"]) == 1
    assert "use compressed-tensors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*line, "-o", str(tmp_path / "none"), "--max-kl", "0"])
    assert load_file(tmp_path / "out" / "model.safetensors")
