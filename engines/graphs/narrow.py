"""The standard dialect with layers in 8- or 4-bit floats: both sides of a product, as newer GPUs multiply.

TensorRT multiplies in these types where scales are constants. So every token is divided by its peak first,
and nothing needs calibration; only the scales of NVFP4's blocks are computed. Were the weights alone in
NVFP4, it would widen them in memory before each product of a prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from engines.graphs.builder import Array
from engines.graphs.standard import Standard
from engines.int4 import Int4
from engines.int8 import Int8
from engines.narrow import (
    BLOCK,
    E2M1_MAX,
    E4M3_LEAST,
    E4M3_MAX,
    TINY,
    Fp8,
    Nvfp4,
    paired,
    to_fp8,
    to_nvfp4,
)

FP8, FP4 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1
PEAK = 16.0  # of a token that is rounded: products stay far below fp16's end, block scales above its least


class NarrowFloats(Standard):
    """A graph of ONNX operators whose dense layers are rounded to FP8 or NVFP4."""

    def __init__(self, path: Path, weights: str) -> None:
        """Start `path` and its weights `path`.data. weights: fp8 or nvfp4."""
        super().__init__(path)
        self.weights = weights
        self._rounded: dict[str, tuple[str, str]] = {}

    def linear(self, name: str, x: str, weight: Array | Int4 | Int8, bias: Array | None = None) -> str:
        """x @ weight.T for a dense weight [N, K], both rounded."""
        assert isinstance(weight, np.ndarray)
        assert bias is None, "the decoder's layers have none"
        if x not in self._rounded:  # q, k and v have one input, and gate and up
            self._rounded[x] = self._round(x)
        rounded, step = self._rounded[x]
        if self.weights == "fp8":
            matrix = self._fp8(name, to_fp8(weight))
        else:
            matrix = self._nvfp4(name, to_nvfp4(weight))
        return self.op("Mul", [self.op("MatMul", [rounded, matrix], name=f"{name}.even"), step], name=name)

    def _round(self, x: str) -> tuple[str, str]:
        """x [B, S, K] with the peak of every token at PEAK, rounded; and what that divided by [B, S, 1]."""
        magnitude = self.op("Abs", [x], name=f"{x}.abs")
        peak = self.op("ReduceMax", [magnitude, self.constant([-1])], name=f"{x}.peak")
        step = self.op("Mul", [peak, self.constant(1 / PEAK, np.float16)], name=f"{x}.step")
        step = self.op("Max", [step, self.constant(TINY, np.float16)], name=f"{x}.least")
        even = self.op("Div", [x, step], name=f"{x}.even")
        if self.weights == "fp8":
            scale = self.constant(PEAK / E4M3_MAX, np.float16)
            codes = self.op("QuantizeLinear", [even, scale], name=f"{x}.codes", output_dtype=FP8)
            return self.op("DequantizeLinear", [codes, scale], name=f"{x}.fp8"), step
        block: dict[str, Any] = {"axis": -1, "block_size": BLOCK}
        scales = self._block_scales(x, even)
        codes = self.op("QuantizeLinear", [even, scales], name=f"{x}.codes", output_dtype=FP4, **block)
        return self.op("DequantizeLinear", [codes, scales], name=f"{x}.nvfp4", **block), step

    def _block_scales(self, x: str, even: str) -> str:
        """A sixth of the peak of every 16 values of `even`, rounded to FP8; fp16 [B, S, K / 16]."""
        blocks = self.op("Reshape", [even, self.constant([0, 0, -1, BLOCK])], name=f"{x}.blocks")
        blocks = self.op("Abs", [blocks], name=f"{x}.blocks.abs")
        peaks = self.op("ReduceMax", [blocks, self.constant([-1])], name=f"{x}.blocks.peak", keepdims=0)
        sixth = self.op("Div", [peaks, self.constant(E2M1_MAX, np.float16)], name=f"{x}.blocks.sixth")
        unit = PEAK / (E2M1_MAX * E4M3_MAX)
        # Of a block of zeros too the scale must not be rounded to zero, which would divide them.
        least = self.constant(unit * E4M3_LEAST, np.float32)
        wide = self.op("Max", [self.cast(sixth, np.float32), least], name=f"{x}.blocks.least")
        scale = self.constant(unit, np.float32)
        codes = self.op("QuantizeLinear", [wide, scale], name=f"{x}.blocks.codes", output_dtype=FP8)
        return self.cast(self.op("DequantizeLinear", [codes, scale], name=f"{x}.blocks.fp8"), np.float16)

    def _fp8(self, name: str, weight: Fp8) -> str:
        codes = self.codes(f"{name}.codes", weight.codes.T.view(np.uint8), FP8)
        scales = self.initializer(f"{name}.scales", weight.scales)
        return self.op("DequantizeLinear", [codes, scales], name=f"{name}.weight", axis=1)

    def _nvfp4(self, name: str, weight: Nvfp4) -> str:
        blocks = self.codes(f"{name}.blocks", weight.blocks.T.view(np.uint8), FP8)
        scale = self.initializer(f"{name}.scale", np.asarray(weight.scale))
        scales = self.cast(self.op("DequantizeLinear", [blocks, scale], name=f"{name}.scales"), np.float16)
        codes = self.codes(f"{name}.codes", paired(weight.codes.T), FP4)
        return self.op("DequantizeLinear", [codes, scales], name=f"{name}.weight", axis=0, block_size=BLOCK)
