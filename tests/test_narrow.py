"""8- and 4-bit floats, against torch's and against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from engines.checkpoint import Checkpoint
from engines.export import export_standard
from engines.graphs.narrow import NarrowFloats
from engines.narrow import BLOCK, paired, to_fp8, to_nvfp4
from engines.onnx_files import DECODER
from engines.onnx_session import OnnxSession
from engines.processor import Processor

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # every magnitude there is (OCP Microscaling Formats, 5.3.3)


def weight(rows: int = 8, columns: int = 64) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, columns)).astype(np.float16)


def test_fp8_rounds_as_torch_does() -> None:
    narrow = to_fp8(weight())
    scaled = torch.from_numpy(weight().astype(np.float32)) / torch.from_numpy(
        narrow.scales.astype(np.float32)
    ).unsqueeze(1)
    expected = scaled.clamp(-448, 448).to(torch.float8_e4m3fn)
    np.testing.assert_array_equal(narrow.codes.view(np.uint8), expected.view(torch.uint8).numpy())
    np.testing.assert_array_equal(np.abs(narrow.codes.astype(np.float32)).max(axis=1), 448)


def test_fp8_is_within_half_a_step() -> None:
    """E4M3 has three bits after the leading one."""
    exact, found = weight().astype(np.float32), to_fp8(weight()).dequantize()
    normal = np.abs(exact) > np.abs(exact).max(axis=1, keepdims=True) / 448 * 2.0**-6
    assert (np.abs(found - exact)[normal] <= np.abs(exact)[normal] * (2.0**-4 + 1e-3)).all()


def test_nvfp4_takes_the_nearest_of_the_few_values_there_are() -> None:
    exact, narrow = weight().astype(np.float32), to_nvfp4(weight())
    steps = np.repeat(narrow.blocks.astype(np.float32) * narrow.scale, BLOCK, axis=1)
    values = np.sign(exact)[..., None] * E2M1 * steps[..., None]
    nearest = np.abs(values - exact[..., None]).min(axis=-1)
    np.testing.assert_allclose(np.abs(narrow.dequantize() - exact), nearest, rtol=0, atol=1e-6)
    assert narrow.blocks.astype(np.float32).max() == 448
    assert narrow.blocks.shape == (8, 64 // BLOCK)


@pytest.mark.parametrize("narrow", [to_fp8, to_nvfp4])
def test_zeros_stay_zeros(narrow: object) -> None:
    zeros = np.zeros((2, 32), np.float16)
    half = zeros.copy()
    half[0] = 1
    for given in (zeros, half):
        found = narrow(given).dequantize()  # type: ignore[operator]
        np.testing.assert_allclose(found, given, rtol=2**-11)  # half a step of a scale in fp16


def test_two_4_bit_floats_share_a_byte() -> None:
    codes = to_nvfp4(np.array([[6, -1] * 8], np.float16)).codes
    assert paired(codes).tolist() == [[0xA7] * 8]  # 6 is 0b0111, -1 is 0b1010


def by_hand(x: np.ndarray, narrow: str) -> np.ndarray:
    """x [S, K] with each row rounded as a graph is to round it, in float64 by the formats' own tables."""
    peaks = np.abs(x).max(axis=1, keepdims=True)
    even = x / peaks
    if narrow == "fp8":
        return torch.from_numpy(even * 448).to(torch.float8_e4m3fn).double().numpy() / 448 * peaks
    blocks = np.abs(even).reshape(len(x), -1, BLOCK).max(axis=2) / 6 * (6 * 448)
    scales = torch.from_numpy(blocks).to(torch.float8_e4m3fn).double().numpy() / (6 * 448)
    steps = np.repeat(scales, BLOCK, axis=1)
    values = np.sign(even)[..., None] * E2M1 * steps[..., None]
    return (
        np.take_along_axis(values, np.abs(values - even[..., None]).argmin(-1)[..., None], -1)[..., 0] * peaks
    )


@pytest.mark.parametrize("narrow", ["fp8", "nvfp4"])
def test_a_graph_multiplies_what_was_rounded(narrow: str, tmp_path: Path) -> None:
    """By ONNX's reference implementation: onnxruntime has no 4-bit floats on a CPU."""
    dense, x = weight(24, 64), np.random.default_rng(1).standard_normal((5, 64)).astype(np.float16)
    x[2] *= 1000  # an outlier of a token is that token's own affair
    x[3], x[4, :BLOCK] = 0, 0
    with NarrowFloats(tmp_path / "graph.onnx", narrow) as graph:
        y = graph.linear("layer", graph.input("x", np.float16, [1, "S", 64]), dense)
        graph.output("y", y, np.float16, [1, "S", 24])
    (found,) = ReferenceEvaluator(onnx.load(tmp_path / "graph.onnx")).run(None, {"x": x[None]})
    rounded = (to_fp8 if narrow == "fp8" else to_nvfp4)(dense).dequantize()
    x[3] = 1  # stands for the row of zeros, which must come out as such
    expected = by_hand(x.astype(np.float64), narrow) @ rounded.T
    expected[3] = 0
    error = np.linalg.norm(found[0] - expected, axis=1) / np.maximum(np.linalg.norm(expected, axis=1), 1e-9)
    assert error.max() < 5e-3  # fp16's, and a code here and there that lies between two


@pytest.mark.parametrize(("narrow", "most", "among"), [("fp8", 0.05, 1), ("nvfp4", 0.2, 5)])
def test_logits_stay_near_those_of_16_bits(
    narrow: str, most: float, among: int, micro_checkpoint: Path, tmp_path: Path
) -> None:
    """The whole decoder of the micro checkpoint, by ONNX's reference implementation.

    Of facts that so small a model memorised, plain rounding to NVFP4 loses some: the answer is near the top.
    """
    for name, weights in (("fp16", None), (narrow, narrow)):
        export_standard(Checkpoint.open(micro_checkpoint), tmp_path / name, weights=weights)
    session = OnnxSession(tmp_path / "fp16", threads=1)
    prompt = Processor.load(tmp_path / "fp16")([{"role": "user", "content": "Code of Zafolo?"}])
    length = len(prompt.input_ids)
    arrays = session.arrays(1, length, 64, length)
    arrays["logit_rows"][:] = np.arange(length)
    positions = session.fill(arrays, [prompt], [session.vision(prompt)], 0, length)
    session.inputs.place(arrays, np.array([0]), np.array([length]), positions)
    del arrays["logits"]
    text = session.config.text
    empty = np.zeros((1, text.num_key_value_heads, 64, text.head_dim), np.float16)
    caches = {f"past_{kind}.{i}": empty for i in range(text.num_hidden_layers) for kind in ("key", "value")}
    exact, rounded = (
        ReferenceEvaluator(onnx.load(tmp_path / name / DECODER)).run(["logits"], arrays | caches)[0]
        for name in ("fp16", narrow)
    )
    assert 0.005 < np.linalg.norm(rounded - exact) / np.linalg.norm(exact) < most
    assert exact[-1].argmax() in rounded[-1].argsort()[-among:]
    if narrow == "fp8":  # which onnxruntime runs too
        logits, _ = OnnxSession(tmp_path / narrow, threads=1).prefill([prompt], capacity=64, keep=length)
        assert np.linalg.norm(logits[0] - exact) / np.linalg.norm(exact) < most
