"""Compiles a graph of standard operators into a TensorRT engine: by TensorRT for RTX without a GPU, by plain
TensorRT on the GPU that the engine is for. The calls are the same; the second has not been run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import onnx
from onnx import TensorProto, helper

from engines.engine_files import RTX
from engines.errors import UserError
from engines.onnx_files import EMBEDDING
from engines.tensorrt.plan import Plan, parse_plan
from engines.tensorrt.targets import Target
from engines.tensorrt.weights import MappedWeights

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """How large one free dimension of a graph may be, and the size to be fastest at."""

    least: int
    best: int
    most: int


Ranges = Mapping[str, Range]  # by the dimension's name


def pinned(graph: Path, ranges: Ranges) -> onnx.ModelProto:
    """The graph with every dimension that has only one size set to it; weights stay in their files.

    A tied head becomes an input: it is the table of embeddings, which a session holds once for all engines.
    """
    model = onnx.load(graph, load_external_data=False)
    for tensor in [tensor for tensor in model.graph.initializer if _is_embedding(tensor)]:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        model.graph.initializer.remove(tensor)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            sizes = ranges.get(dimension.dim_param)
            if sizes and sizes.least == sizes.most:
                dimension.dim_value = sizes.least
    return model


def compile_graph(graph: Path, engine: Path, target: Target, ranges: Ranges) -> Plan:
    """Write the engine of `graph` for `target` to `engine`; returns what it consists of.

    ranges: for every free dimension of the graph's inputs.
    Raises UserError with the compiler's own words when graph or target do not allow it, and when the engine
    would ignore an input.
    """
    trt = target.runtime.load()
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    model = pinned(graph, ranges)
    weights = MappedWeights(graph, model)
    parsed = parser.load_model_proto(model.SerializeToString(), str(graph))
    parsed = parsed and all(parser.load_initializer(name, *at) for name, at in weights.tensors.items())
    if not (parsed and parser.parse_model_proto()):
        reason = parser.get_error(0).desc() if parser.num_errors else "a weight does not fit its tensor"
        raise UserError(f"{graph}: TensorRT cannot read it: {_first_line(reason)}")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if target.runtime is RTX:  # which has no GPU to ask
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.name.upper()), 0)
    profile = builder.create_optimization_profile()
    for value in model.graph.input:
        profile.set_shape(value.name, *_shapes(value, ranges))
    config.add_optimization_profile(profile)
    with weights, engine.open("wb") as file:
        built = builder.build_serialized_network_to_stream(network, config, _writer(trt, file))
    plan = parse_plan(logger.messages)
    if not built:
        engine.unlink()
        reason = logger.errors[-1] if logger.errors else "it gave no reason"
        raise UserError(f"{graph}: TensorRT cannot build it for {target.name}: {_first_line(reason)}")
    if ignored := plan.unread(value.name for value in model.graph.input):
        engine.unlink()
        raise UserError(f"{graph}: the engine for {target.name} ignores the input {ignored[0]}")
    return plan


def _is_embedding(tensor: TensorProto) -> bool:
    """Whether a weight is the table of embeddings, in the type that it is multiplied in."""
    places = [entry.value for entry in tensor.external_data if entry.key == "location"]
    return places == [EMBEDDING] and tensor.data_type == TensorProto.FLOAT16


def _shapes(value: onnx.ValueInfoProto, ranges: Ranges) -> list[Shape]:
    """The least, best and most of an input."""
    sizes = [
        ranges[dimension.dim_param]
        if dimension.dim_param
        else Range(dimension.dim_value, dimension.dim_value, dimension.dim_value)
        for dimension in value.type.tensor_type.shape.dim
    ]
    return [tuple(getattr(size, which) for size in sizes) for which in ("least", "best", "most")]


def _writer(trt: Any, file: BinaryIO) -> Any:
    """Takes an engine piece by piece: whole, it would lie in memory beside the network."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def write(self, data: bytes) -> int:
            return file.write(data)

    return Writer()


def _logger(trt: Any) -> Any:
    """One that keeps everything: the plan is reported nowhere else without a GPU."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[str] = []
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            self.messages.append(message)
            # Having no driver is no fault of a build that needs none.
            if severity <= trt.ILogger.Severity.ERROR and "CUDA driver" not in message:
                self.errors.append(message)

    return Logger()


def _first_line(text: str) -> str:
    """Without the names of internal calls before what went wrong, and the links behind it."""
    return text.strip().splitlines()[0].rsplit("Exception: ", 1)[-1].split("  (See")[0]
