"""Graphs of standard operators in a second runtime: OpenVINO's CPU plug-in gives onnxruntime's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
import pytest
from numpy.typing import NDArray
from openvino.frontend.onnx import ConversionExtension

from engines.checkpoint import Checkpoint
from engines.export import export, export_standard
from engines.onnx_files import DECODER, VISION
from engines.onnx_session import Bound, OnnxSession
from engines.processor import Processor
from tests.int4_checkpoints import write_int4_pair
from tests.test_parity import STEPS, cases, error, follow

TOLERANCE = 5e-3  # relative L2 error of logits between two runtimes that round to fp16 in other places
# Where a CPU has VNNI the plug-in would round activations to 8 bits in front of INT4 weights.
OPTIONS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    "INFERENCE_NUM_THREADS": 1,
}


def tensor_scatter(node: Any) -> list[Any]:
    """ONNX's TensorScatter, the one operator of ours that OpenVINO 2026.4 has no rule for.

    New keys or values [B, heads, S, D] go into the cache [B, heads, C, D] from the place [B] on.
    """
    cache, new, start = (node.get_input(i) for i in range(3))
    shape = ops.shape_of(new)
    size = ops.gather(shape, ops.constant(2), ops.constant(0))
    step = ops.range(ops.constant(np.int64(0)), size, ops.constant(np.int64(1)), "i64")
    place = ops.add(ops.unsqueeze(start, ops.constant([1])), ops.unsqueeze(step, ops.constant([0])))
    places = ops.broadcast(ops.unsqueeze(place, ops.constant([1, 3])), shape)
    return ops.scatter_elements_update(cache, places, new, ops.constant(2)).outputs()


def compiled(path: Path) -> Any:
    core = ov.Core()
    core.add_extension(ConversionExtension("TensorScatter", tensor_scatter))
    return core.compile_model(core.read_model(path), "CPU", OPTIONS)


class Seeing:
    """A vision tower's graph, run by OpenVINO."""

    def __init__(self, described: Any, path: Path) -> None:
        self.get_inputs, self._graph = described.get_inputs, compiled(path)

    def run(self, outputs: None, feeds: dict[str, NDArray[Any]], options: Any) -> list[NDArray[Any]]:
        return [self._graph(feeds)["features"]]


class OpenVinoSession(OnnxSession):
    """The host's side of a session as it is; both graphs are OpenVINO's."""

    def __init__(self, artifact: Path) -> None:
        super().__init__(artifact, threads=1)
        self.vision.__dict__["_graph"] = Seeing(self.vision._graph, artifact / VISION)
        self.graph = compiled(artifact / DECODER)

    def _allocate(self, batch: int, capacity: int) -> dict[str, Any]:
        return dict(self.cache_arrays(batch, capacity))

    def bind(
        self, graph: Any, arrays: dict[str, NDArray[Any]], keys_values: dict[str, Any], options: Any = None
    ) -> Bound:
        return Bound(graph, keys_values, arrays, {}, None, options)

    def run(self, bound: Bound) -> None:
        past = {f"past_{name}": value for name, value in bound.binding.items()}
        fed = {name: array for name, array in bound.arrays.items() if name != "logits"}
        found = self.graph(fed | past)
        bound.arrays["logits"][:] = found["logits"]
        for name, value in bound.binding.items():
            value[:] = found[f"present_{name}"]


@pytest.fixture(scope="module", params=["fp16", "int4"])
def artifact(
    request: pytest.FixtureRequest, micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("openvino")
    source = micro_checkpoint if request.param == "fp16" else write_int4_pair(micro_checkpoint, folder)[0]
    export_standard(Checkpoint.open(source), folder / "standard")
    return folder / "standard"


def test_answers_are_onnxruntime_s(artifact: Path) -> None:
    prompts = [cases(Processor.load(artifact))[name] for name in ("text", "image and video")]
    wanted = follow(OnnxSession(artifact, threads=1), prompts)
    for found, expected in zip(follow(OpenVinoSession(artifact), prompts), wanted, strict=True):
        assert error(found, expected) <= TOLERANCE
        assert found[-STEPS - 1 :].argmax(-1).tolist() == expected[-STEPS - 1 :].argmax(-1).tolist()


@pytest.mark.parametrize("graph", [VISION, DECODER])
def test_graphs_of_onnxruntime_s_operators_are_refused(
    micro_checkpoint: Path, tmp_path: Path, graph: str
) -> None:
    """As docs/artifact.md says; where this fails, OpenVINO has learnt them and the table is to be changed."""
    export(Checkpoint.open(micro_checkpoint), tmp_path)
    with pytest.raises(RuntimeError, match=r"com\.microsoft\.(RotaryEmbedding|GroupQueryAttention)"):
        compiled(tmp_path / graph)
