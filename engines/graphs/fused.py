"""The dialect of onnxruntime's own fused operators, in fp32: the fastest on a CPU.

Inputs that tell a decoder where its tokens stand, for B sequences of S new tokens, C cache capacity:
  position_ids     i64 [3, B, S]     temporal, height and width position of every token (mRoPE)
  seqlens_k        i32 [B]           tokens in the cache after this step, minus one
  total_length     i32 []            the longest of these lengths
  query_seqlens    i32 [B]           valid new tokens of each sequence, 0 to S
  past_key.i, past_value.i           f32 or int8 [B, kv heads, C, D], bound to the memory of present_key.i
                                     and present_value.i: the cache is updated in place
and a vision tower its patches: patch_positions i64 [P, 2], row and column of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from engines.config import TextConfig, VisionConfig
from engines.errors import UserError
from engines.graphs.builder import MICROSOFT, Array, Graph
from engines.int4 import Int4
from engines.int8 import TINY, Int8
from engines.int8 import ZERO_POINT as INT8_ZERO
from engines.packing import to_matmulnbits
from engines.rotary import text_frequencies, vision_frequencies

LENGTHS = ("seqlens_k", "total_length", "query_seqlens")
INT8_CACHE = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
CacheScales = npt.NDArray[np.float32]


class Fused(Graph):
    """A graph of onnxruntime's operators; activations and what is not a matrix are fp32."""

    opset = 23  # the first with RotaryEmbedding
    frames: int | str = "F"
    activations = np.float32

    def __init__(
        self,
        path: Path,
        *,
        accuracy_level: int = 0,
        int8: bool = False,
        cache_scales: CacheScales | None = None,
    ) -> None:
        """Start `path` and its weights `path`.data.

        accuracy_level: MatMulNBits computes with activations in fp32 (0) or quantised to int8 (4).
        int8: whether dense layers are to be multiplied in 8 bits. cache_scales: for keys and values in int8,
        f32 [layers, 2, kv heads * D], the step of each channel of the keys and of the values.
        """
        super().__init__(path)
        self.accuracy_level = accuracy_level
        self.int8 = int8
        self.cache_scales = cache_scales
        self._widths: dict[str, str] = {}

    def vector(self, name: str, array: Array) -> str:
        """A norm's scale or a bias: fp32 holds every 16-bit value exactly."""
        return self.initializer(name, np.asarray(array, np.float32))

    def matrix(self, name: str, array: Array) -> str:
        """A 16-bit weight stays 16-bit on disk."""
        return self.cast(self.stored(name, array), np.float32)

    def linear(self, name: str, x: str, weight: Array | Int4 | Int8, bias: Array | None = None) -> str:
        """x @ weight.T (+ bias) for a weight [N, K]; in a graph of 8-bit products Int8 has x rounded too."""
        if isinstance(weight, Int8) and self.int8:
            y = self._matmul_int8(name, x, weight)
        elif isinstance(weight, Int4 | Int8):
            y = self._matmul_nbits(name, x, weight)
        else:
            y = self.op("MatMul", [x, self._widened(f"{name}.weight", x, weight.T)], name=name)
        if bias is None:
            return y
        return self.op("Add", [y, self.vector(f"{name}.bias", bias)], name=f"{name}.biased")

    def _widened(self, name: str, x: str, array: Array) -> str:
        """A 16-bit weight [K, N] in fp32, once x [..., K] is there.

        onnxruntime runs first what waits for nothing: it would widen every weight and hold them all.
        """
        stored = self.stored(name, array)
        shape = self.op("Concat", [self.width(x), self.constant([-1])], name=f"{name}.shape", axis=0)
        return self.cast(self.op("Reshape", [stored, shape], name=f"{name}.now"), np.float32)

    def width(self, x: str) -> str:
        """The last dimension of x, int64 [1]."""
        if x not in self._widths:
            self._widths[x] = self.op("Shape", [x], name=f"{x}.width", start=-1)
        return self._widths[x]

    def _matmul_nbits(self, name: str, x: str, weight: Int4 | Int8) -> str:
        rows, columns = weight.shape
        size = weight.group_size
        if size < 16 or size & (size - 1):
            raise UserError(
                f"{name}: groups of {size}, onnxruntime takes powers of two from 16: quantize anew"
            )
        blob, scales = to_matmulnbits(weight)
        codes = self.initializer(f"{name}.codes", blob)
        scale = self.initializer(f"{name}.scales", scales.astype(np.float32))
        shape = {
            "N": rows,
            "K": columns,
            "bits": 4 if isinstance(weight, Int4) else 8,
            "block_size": size,
            "accuracy_level": self.accuracy_level,
        }
        return self.op("MatMulNBits", [x, codes, scale], name=name, domain=MICROSOFT, **shape)

    def _matmul_int8(self, name: str, x: str, weight: Int8) -> str:
        """The operator has one scale for all of x; with rows divided by their peaks each has its own."""
        last = self.constant([-1])
        peak = self.op("ReduceMax", [self.op("Abs", [x], name=f"{name}.abs"), last], name=f"{name}.max")
        peak = self.op("Max", [peak, self.constant(TINY, np.float32)], name=f"{name}.peak")
        even = self.op("Div", [x, peak], name=f"{name}.even")
        codes = self.initializer(f"{name}.codes", np.ascontiguousarray(weight.codes.T))
        scales = self.vector(f"{name}.scales", weight.scales[:, 0])
        zero = self.constant(np.full(len(weight.scales), INT8_ZERO), np.uint8)
        y = self.op(
            "DynamicQuantizeMatMul", [even, codes, scales, zero], name=f"{name}.rows", domain=MICROSOFT
        )
        return self.op("Mul", [y, peak], name=name)

    def residual(self, x: str) -> str:
        """The stream that every layer adds to."""
        return x

    def add(self, name: str, hidden: str, update: str) -> str:
        """The residual stream and what a layer adds to it."""
        return self.op("Add", [hidden, update], name=name)

    def add_norm(self, name: str, hidden: str, update: str, scale: Array, epsilon: float) -> tuple[str, str]:
        """RMSNorm of hidden + update (which may be ""), and that sum."""
        weight = self.vector(f"{name}.weight", scale)
        if not update:
            return self.op("RMSNormalization", [hidden, weight], name=name, epsilon=epsilon), hidden
        outputs = [name, "", "", f"{name}.residual"]
        inputs = [hidden, update, weight]
        self.ops("SkipSimplifiedLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=epsilon)
        return outputs[0], outputs[3]

    def layer_norm(self, name: str, x: str, scale: Array, shift: Array, epsilon: float) -> str:
        weights = [self.vector(f"{name}.weight", scale), self.vector(f"{name}.bias", shift)]
        return self.op("LayerNormalization", [x, *weights], name=name, axis=-1, epsilon=epsilon)

    def silu(self, name: str, x: str) -> str:
        return self.op("QuickGelu", [x], name=name, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(1 * x)

    def gelu_tanh(self, name: str, x: str) -> str:
        """Its tanh approximation as x * sigmoid(2 a (x + b x^3)): onnxruntime's own takes twice the time."""
        scale = 2 * (2 / np.pi) ** 0.5
        linear, cubic = (self.constant(value, np.float32) for value in (scale, scale * 0.044715))
        square = self.op("Mul", [x, x], name=f"{name}.square")
        square = self.op("Mul", [square, cubic], name=f"{name}.cubic")
        slope = self.op("Add", [square, linear], name=f"{name}.slope")
        inner = self.op("Mul", [x, slope], name=f"{name}.inner")
        gate = self.op("Sigmoid", [inner], name=f"{name}.gate")
        return self.op("Mul", [x, gate], name=name)

    def token_places(self, config: TextConfig) -> list[str]:
        """cos and sin f32 [B, S, D / 2], computed from the positions.

        In the graph and not as tables: at 262,144 positions those take 134 MB, and shorter ones would cap the
        context. One term of each product is non-zero, so the angles are a table's to the last bit.
        """
        positions = self.input("position_ids", np.int64, [3, "B", "S"])
        for name, shape in zip(LENGTHS, (["B"], [], ["B"]), strict=True):
            self.input(name, np.int32, shape)
        positions = self.op("Cast", [positions], name="rotary.positions", to=TensorProto.FLOAT)
        positions = self.op("Transpose", [positions], name="rotary.rows", perm=[1, 2, 0])
        return self._turns(positions, text_frequencies(config))

    def cached_attention(
        self, name: str, layer: int, q: str, k: str, v: str, rotary: list[str], config: TextConfig
    ) -> str:
        """Attention of q to all that is cached, which k and v join; [B, S, heads * D].

        q, k [B, S, heads, D], not yet turned; v [B, S, heads * D].
        """
        heads, shared = config.num_attention_heads, config.num_key_value_heads
        q, k = (self._turned(x, rotary, count) for x, count in ((q, heads), (k, shared)))
        shape: list[int | str] = ["B", shared, "C", config.head_dim]
        dtype: npt.DTypeLike = np.float32
        steps, quantized = ["", ""], {}
        if self.cache_scales is not None:
            dtype, quantized = np.int8, INT8_CACHE
            rows = zip("kv", self.cache_scales[layer], strict=True)
            steps = [self.vector(f"{name}.{kind}_scale", row) for kind, row in rows]
        past = [self.input(f"past_{kind}.{layer}", dtype, shape) for kind in ("key", "value")]
        present = [f"present_{kind}.{layer}" for kind in ("key", "value")]
        seqlens_k, total_length, query_seqlens = LENGTHS
        tables, norms = [""] * 5, [""] * 2  # rotary tables, positions, attention bias, sinks: none of these
        y, *_ = self.ops(
            "GroupQueryAttention",
            [q, k, v, *past, seqlens_k, total_length, *tables, *steps, *norms, query_seqlens],
            [f"{name}.attention", *present],
            domain=MICROSOFT,
            num_heads=heads,
            kv_num_heads=shared,
            scale=config.head_dim**-0.5,
            **quantized,
        )
        for output in present:
            self.output(output, output, dtype, shape)
        return y

    def _turned(self, x: str, rotary: list[str], heads: int) -> str:
        x = self.op("Reshape", [x, self.constant([0, 0, -1])], name=f"{x}.joined")
        return self.op("RotaryEmbedding", [x, *rotary], name=f"{x}.rotated", num_heads=heads)

    def patch_places(self, config: VisionConfig) -> list[str]:
        """What RotaryEmbedding takes after its input: a position id, and cos and sin f32 [P, D / 2]."""
        positions = self.input("patch_positions", np.int64, ["P", 2])
        positions = self.op("Cast", [positions], name="rotary.positions", to=TensorProto.FLOAT)
        turns = self._turns(positions, vision_frequencies(config))
        return [self.constant([0]), *turns]  # every frame starts at row 0 of the tables

    def _turns(self, positions: str, frequencies: npt.NDArray[np.float32]) -> list[str]:
        rows = [positions, self.vector("rotary.frequencies", frequencies)]
        angles = self.op("MatMul", rows, name="rotary.angles")
        return [self.op("Cos", [angles], name="rotary.cos"), self.op("Sin", [angles], name="rotary.sin")]

    def frame_attention(self, name: str, qkv: list[str], rotary: list[str], config: VisionConfig) -> str:
        """Attention of q, k, v [F, P, heads * D] within each frame."""
        head_dim = config.hidden_size // config.num_heads
        shape: dict[str, Any] = {"num_heads": config.num_heads, "domain": MICROSOFT}
        q, k = (
            self.op(
                "RotaryEmbedding", [x, *rotary], name=f"{x}.rotated", rotary_embedding_dim=head_dim, **shape
            )
            for x in qkv[:2]
        )
        scale = head_dim**-0.5
        return self.op("MultiHeadAttention", [q, k, qkv[2]], name=f"{name}.attention", scale=scale, **shape)
