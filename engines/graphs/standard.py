"""The dialect of standard operators (ONNX opset 24) in fp16: for TensorRT, and the same file runs anywhere.

The residual stream and its norms are fp32: a trained model's peaks leave little of fp16's range.
Inputs that tell a decoder where its tokens stand, for B sequences of S new tokens, C cache capacity:
  rotary_cos, rotary_sin  f16 [B, S, D / 2]  how far each token's position turns a head (engines.rotary)
  attention_mask          f16 [B, 1, S, C]   0 where a token may look, -65504 elsewhere
  write_indices           i64 [B]            where in the cache the new tokens go
  past_key.i, past_value.i                   f16 [B, kv heads, C, D]; present_key.i and present_value.i may be
                                             bound to the same memory
and a vision tower its patches: rotary_cos and rotary_sin f16 [1, P, D / 2].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from engines.config import TextConfig, VisionConfig
from engines.graphs.builder import Array, Graph, halved
from engines.int4 import Int4
from engines.int8 import Int8
from engines.packing import to_dequantizelinear


class Standard(Graph):
    """A graph of ONNX operators alone."""

    opset = 24  # the first with TensorScatter
    frames: int | str = 1  # at a time: of a video one after another
    activations = np.float16
    int8 = False

    def vector(self, name: str, array: Array, dtype: npt.DTypeLike = np.float16) -> str:
        """A norm's scale or a bias."""
        return self.initializer(name, halved(array, name).astype(dtype))

    def matrix(self, name: str, array: Array) -> str:
        return self.initializer(name, halved(array, name))

    def linear(self, name: str, x: str, weight: Array | Int4 | Int8, bias: Array | None = None) -> str:
        """x @ weight.T (+ bias) for a weight [N, K]; 4-bit codes stay 4 bits in a compiled engine.

        8-bit ones become fp16: TensorRT has no product of fp16 with groups of them.
        """
        if isinstance(weight, Int8):
            weight = weight.dequantize()
        if isinstance(weight, Int4):
            matrix = self._dequantized(name, weight)
        else:
            matrix = self.matrix(f"{name}.weight", weight.T)
        y = self.op("MatMul", [x, matrix], name=name)
        if bias is None:
            return y
        return self.op("Add", [y, self.vector(f"{name}.bias", bias)], name=f"{name}.biased")

    def _dequantized(self, name: str, weight: Int4) -> str:
        pairs, scales = to_dequantizelinear(weight)
        codes = self.codes(f"{name}.codes", pairs, TensorProto.INT4)
        scale = self.initializer(f"{name}.scales", halved(scales, f"{name}.scales"))
        size = weight.group_size
        return self.op("DequantizeLinear", [codes, scale], name=f"{name}.weight", axis=0, block_size=size)

    def residual(self, x: str) -> str:
        """The stream that every layer adds to, in fp32."""
        return self.cast(x, np.float32)

    def add(self, name: str, hidden: str, update: str) -> str:
        """The residual stream, and in fp16 what a layer adds to it."""
        return self.op("Add", [hidden, self.cast(update, np.float32)], name=name)

    def add_norm(self, name: str, hidden: str, update: str, scale: Array, epsilon: float) -> tuple[str, str]:
        """RMSNorm of hidden + update (which may be ""), and that sum."""
        if update:
            hidden = self.add(f"{name}.residual", hidden, update)
        weight = self.vector(f"{name}.weight", scale, np.float32)
        wide = self.op("RMSNormalization", [hidden, weight], name=f"{name}.wide", epsilon=epsilon)
        return self.cast(wide, np.float16), hidden

    def layer_norm(self, name: str, x: str, scale: Array, shift: Array, epsilon: float) -> str:
        weights = [
            self.vector(f"{name}.weight", scale, np.float32),
            self.vector(f"{name}.bias", shift, np.float32),
        ]
        wide = self.op("LayerNormalization", [x, *weights], name=f"{name}.wide", axis=-1, epsilon=epsilon)
        return self.cast(wide, np.float16)

    def silu(self, name: str, x: str) -> str:
        return self.op("Mul", [x, self.op("Sigmoid", [x], name=f"{name}.gate")], name=name)

    def gelu_tanh(self, name: str, x: str) -> str:
        return self.op("Gelu", [x], name=name, approximate="tanh")

    def token_places(self, config: TextConfig) -> list[str]:
        """The inputs cos and sin; beside them the mask and the place in the cache are declared."""
        self.input("attention_mask", np.float16, ["B", 1, "S", "C"])
        self.input("write_indices", np.int64, ["B"])
        return self._turns(["B", "S", config.head_dim // 2])

    def cached_attention(
        self, name: str, layer: int, q: str, k: str, v: str, rotary: list[str], config: TextConfig
    ) -> str:
        """Attention of q to all that is cached, which k and v join; [B, S, heads * D].

        q, k [B, S, heads, D], not yet turned; v [B, S, heads * D].
        """
        split = self.constant([0, 0, config.num_key_value_heads, config.head_dim])
        v = self.op("Reshape", [v, split], name=f"{name}.v.heads")
        q, k, v = (self._heads_first(x) for x in (q, k, v))
        q, k = (self.op("RotaryEmbedding", [x, *rotary], name=f"{x}.rotated") for x in (q, k))
        shape: list[int | str] = ["B", config.num_key_value_heads, "C", config.head_dim]
        cached = []
        for kind, new in (("key", k), ("value", v)):
            past = self.input(f"past_{kind}.{layer}", np.float16, shape)
            present = f"present_{kind}.{layer}"
            self.op("TensorScatter", [past, new, "write_indices"], name=present, axis=2)
            self.output(present, present, np.float16, shape)
            cached.append(present)
        inputs = [q, *cached, "attention_mask"]
        y = self.op("Attention", inputs, name=f"{name}.attention", scale=config.head_dim**-0.5)
        return self._heads_last(name, y)

    def patch_places(self, config: VisionConfig) -> list[str]:
        return self._turns([self.frames, "P", config.hidden_size // config.num_heads // 2])

    def _turns(self, shape: list[int | str]) -> list[str]:
        return [self.input(name, np.float16, shape) for name in ("rotary_cos", "rotary_sin")]

    def frame_attention(self, name: str, qkv: list[str], rotary: list[str], config: VisionConfig) -> str:
        """Attention of q, k, v [F, P, heads * D] within each frame."""
        heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
        split = self.constant([0, 0, heads, head_dim])
        q, k, v = (self._heads_first(self.op("Reshape", [x, split], name=f"{x}.heads")) for x in qkv)
        q, k = (self.op("RotaryEmbedding", [x, *rotary], name=f"{x}.rotated") for x in (q, k))
        y = self.op("Attention", [q, k, v], name=f"{name}.attention", scale=head_dim**-0.5)
        return self._heads_last(name, y)

    def _heads_first(self, x: str) -> str:
        """[B, S, heads, D] to [B, heads, S, D]."""
        return self.op("Transpose", [x], name=f"{x}.first", perm=[0, 2, 1, 3])

    def _heads_last(self, name: str, y: str) -> str:
        """[B, heads, S, D] to [B, S, heads * D]."""
        y = self.op("Transpose", [y], name=f"{name}.tokens", perm=[0, 2, 1, 3])
        return self.op("Reshape", [y, self.constant([0, 0, -1])], name=f"{name}.joined")
