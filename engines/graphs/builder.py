"""Writes one ONNX graph: nodes in memory, weights streamed to one external data file as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from engines.errors import UserError
from engines.int4 import Int4
from engines.int8 import ZERO_POINT as INT8_ZERO
from engines.int8 import Int8
from engines.packing import to_matmulnbits

MICROSOFT = "com.microsoft"  # the domain of onnxruntime's fused operators
OPSET = 23  # the first with RotaryEmbedding
IR_VERSION = 11
ALIGNMENT = 4096  # a page: onnxruntime maps external data instead of reading it
INLINE_BYTES = 1024
TINY = 1e-30  # keeps a row of zeros from dividing by zero

Array = npt.NDArray[Any]


class Graph:
    """A graph under construction, written when its `with` block ends; values are named as in ONNX.

    Equal calls write equal bytes: names are given, constants are shared by content, and nothing of the time,
    the machine or the path is recorded.
    """

    def __init__(self, path: Path, *, accuracy_level: int = 0, int8: bool = False) -> None:
        """Start `path` and its weights `path`.data.

        accuracy_level: MatMulNBits computes with activations in fp32 (0) or quantised to int8 (4).
        int8: whether dense layers are to be multiplied in 8 bits.
        """
        self.path = path
        self.accuracy_level = accuracy_level
        self.int8 = int8
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._data = path.with_name(path.name + ".data").open("wb")

    def input(self, name: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> str:
        """Declare a graph input; a dimension named by a string is free."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, value: str, dtype: npt.DTypeLike, shape: Sequence[int | str]) -> None:
        """Give `value` to the outside as `name`."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))
        if name != value:
            self.nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def op(self, kind: str, inputs: Sequence[str], *, name: str, domain: str = "", **attributes: Any) -> str:
        """Append a node with one output and return that output's name."""
        return self.ops(kind, inputs, [name], domain=domain, **attributes)[0]

    def ops(
        self, kind: str, inputs: Sequence[str], outputs: list[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Append a node with several outputs; an output named "" is not wanted."""
        name = next(filter(None, outputs))
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """A small fixed tensor; equal ones are stored once."""
        array = np.asarray(value, dtype)
        content = (array.dtype.str, array.shape, array.tobytes())
        if content not in self._constants:
            self._constants[content] = self.initializer(f"constant.{len(self._constants)}", array)
        return self._constants[content]

    def vector(self, name: str, array: Array) -> str:
        """A norm's scale or a bias: kept in fp32, which holds every 16-bit value exactly."""
        return self.initializer(name, np.asarray(array, np.float32))

    def matrix(self, name: str, array: Array) -> str:
        """A 16-bit weight stays 16-bit on disk; onnxruntime folds the cast once, when it loads the graph."""
        return self.widened(self.stored(name, array))

    def stored(self, name: str, array: Array, file: Path | None = None) -> str:
        """A weight in 16 bits. file: a sibling of the graph that already holds exactly these bytes."""
        return self.initializer(name, storable(array, name), file)

    def widened(self, value: str) -> str:
        """`value` in fp32."""
        tensor = self.initializers.get(value)
        if tensor is not None and tensor.data_type == TensorProto.FLOAT:
            return value
        return self.op("Cast", [value], name=f"{value}.fp32", to=TensorProto.FLOAT)

    def linear(self, name: str, x: str, weight: Array | Int4 | Int8, bias: Array | None = None) -> str:
        """x @ weight.T (+ bias) for a weight [N, K]; Int8 weights also have x rounded to 8 bits."""
        if isinstance(weight, Int4):
            y = self._matmul_int4(name, x, weight)
        elif isinstance(weight, Int8):
            y = self._matmul_int8(name, x, weight)
        else:
            y = self.op("MatMul", [x, self.matrix(f"{name}.weight", weight.T)], name=name)
        if bias is None:
            return y
        return self.op("Add", [y, self.vector(f"{name}.bias", bias)], name=f"{name}.biased")

    def _matmul_int4(self, name: str, x: str, weight: Int4) -> str:
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
            "bits": 4,
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
        scales = self.vector(f"{name}.scales", weight.scales)
        zero = self.constant(np.full(len(weight.scales), INT8_ZERO), np.uint8)
        y = self.op(
            "DynamicQuantizeMatMul", [even, codes, scales, zero], name=f"{name}.rows", domain=MICROSOFT
        )
        return self.op("Mul", [y, peak], name=name)

    def initializer(self, name: str, array: Array, file: Path | None = None) -> str:
        """Store `array` under `name`: inline when small, else in the external data file (or in `file`)."""
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        tensor = TensorProto(name=name, dims=array.shape, data_type=kind)
        if array.nbytes < INLINE_BYTES and file is None:
            tensor.raw_data = array.tobytes()
        else:
            tensor.data_location = TensorProto.EXTERNAL
            offset = 0 if file else self._append(array)
            location = file.name if file else Path(self._data.name).name
            for key, value in (("location", location), ("offset", offset), ("length", array.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
        self.initializers[name] = tensor
        return name

    def _append(self, array: Array) -> int:
        offset = -(-self._data.tell() // ALIGNMENT) * ALIGNMENT
        self._data.seek(offset)
        self._data.write(np.ascontiguousarray(array).data)
        return offset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Finish the data file and, unless something went wrong, write the graph."""
        self._data.close()
        if error:
            return
        initializers = list(self.initializers.values())
        graph = helper.make_graph(self.nodes, self.path.stem, self.inputs, self.outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        self.path.write_bytes(model.SerializeToString(deterministic=True))


def storable(array: Array, name: str) -> Array:
    """bfloat16 as fp16, anything else as it is.

    fp16 has the finer mantissa, so a bfloat16 weight between 6e-5 and 65504 loses nothing.
    Raises UserError naming the tensor when a value is too large.
    """
    if array.dtype != ml_dtypes.bfloat16:
        return array
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        peak = float(np.abs(array.astype(np.float32)).max())
        raise UserError(
            f"{name}: holds {peak:g}, fp16 ends at 65504; store this checkpoint in fp16 or clip the weight"
        )
    return half
