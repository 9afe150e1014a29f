"""Writes one ONNX graph: nodes in memory, weights streamed to one external data file as they come.

What a model consists of is in decoder and vision; how each piece is spelled is a dialect's, a subclass: fused
(onnxruntime's own operators, fastest on a CPU) or standard (ONNX alone, for TensorRT and any other runtime).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from engines.errors import UserError

MICROSOFT = "com.microsoft"  # the domain of onnxruntime's fused operators
IR_VERSION = 11
ALIGNMENT = 4096  # a page: onnxruntime maps external data instead of reading it
INLINE_BYTES = 1024

Array = npt.NDArray[Any]


class Graph:
    """A graph under construction, written when its `with` block ends; values are named as in ONNX.

    Equal calls write equal bytes: names are given, constants are shared by content, and nothing of the time,
    the machine or the path is recorded.
    """

    opset: ClassVar[int]

    def __init__(self, path: Path) -> None:
        """Start `path` and its weights `path`.data."""
        self.path = path
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

    def stored(self, name: str, array: Array, file: Path | None = None) -> str:
        """A weight in 16 bits. file: a sibling of the graph that already holds exactly these bytes."""
        return self.initializer(name, storable(array, name), file)

    def cast(self, value: str, dtype: npt.DTypeLike) -> str:
        """`value` as `dtype`, which a weight may already have."""
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        tensor = self.initializers.get(value)
        if tensor is not None and tensor.data_type == kind:
            return value
        return self.op("Cast", [value], name=f"{value}.{np.dtype(dtype).name}", to=kind)

    def initializer(self, name: str, array: Array, file: Path | None = None) -> str:
        """Store `array` under `name`: inline when small, else in the external data file (or in `file`)."""
        return self._store(name, array, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, file)

    def codes(self, name: str, stored: npt.NDArray[np.uint8], kind: int) -> str:
        """Store codes [K, N] of a type that numpy lacks: bytes [K, N], or [K, N / 2] of a 4-bit type."""
        rows, columns = stored.shape
        width = 2 * columns if kind in (TensorProto.INT4, TensorProto.FLOAT4E2M1) else columns
        return self._store(name, stored, kind, (rows, width), None)

    def _store(self, name: str, array: Array, kind: int, shape: tuple[int, ...], file: Path | None) -> str:
        tensor = TensorProto(name=name, dims=shape, data_type=kind)
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
        domains = {"": self.opset, **{node.domain: 1 for node in self.nodes if node.domain}}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        self.path.write_bytes(model.SerializeToString(deterministic=True))


def storable(array: Array, name: str) -> Array:
    """bfloat16 as fp16, anything else as it is; see `halved`."""
    return halved(array, name) if array.dtype == ml_dtypes.bfloat16 else array


def halved(array: Array, name: str) -> Array:
    """`array` in fp16.

    It has the finer mantissa, so a bfloat16 weight between 6e-5 and 65504 loses nothing.
    Raises UserError naming the tensor when a value is too large.
    """
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    if not np.isfinite(half).all():
        peak = float(np.abs(array.astype(np.float32)).max())
        raise UserError(
            f"{name}: holds {peak:g}, fp16 ends at 65504; store this checkpoint in fp16 or clip the weight"
        )
    return half
