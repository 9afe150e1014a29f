"""Steps that a GPU records and repeats (CUDA graphs), with this machine's CPU in the GPU's place."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.cache import Cache
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.export import export_standard
from engines.onnx_files import DECODER
from engines.onnx_runtime import CUDA, open_model
from engines.onnx_session import ROOM, OnnxSession
from engines.processor import Inputs
from tests.int4_checkpoints import write_int4_pair

# Operators with a CUDA kernel for fp16 that waits for nothing on the host: onnxruntime refuses to record a
# graph that has any on the CPU between them (docs/OperatorKernels.md, and the kernels' sources, of 1.27).
ON_CUDA = {
    "Add",
    "Attention",
    "Cast",
    "DequantizeLinear",
    "Gather",
    "Gemm",
    "Identity",
    "MatMul",
    "Mul",
    "RMSNormalization",
    "Reshape",
    "RotaryEmbedding",
    "Sigmoid",
    "TensorScatter",
    "Transpose",
}


@pytest.fixture(scope="module")
def network(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    packed, _ = write_int4_pair(micro_checkpoint, folder / "pair")
    export_standard(Checkpoint.open(packed), folder / "int4")
    return folder / "int4"


@pytest.fixture
def recording(network: Path) -> OnnxSession:
    """A session that believes its provider to record steps."""
    session = OnnxSession(network, threads=1)
    session.replays = True
    return session


def prompt(length: int) -> Inputs:
    positions = np.broadcast_to(np.arange(length), (3, length))
    return Inputs(np.arange(3, 3 + length), positions, (), length)


def number(session: OnnxSession, cache: Cache, size: int = 1) -> str:
    return str(session._step(cache, size).options.get_run_config_entry("gpu_graph_id"))


def addresses(cache: Cache) -> list[int]:
    return [value.data_ptr() for value in cache.state.keys_values.values()]


def test_the_graph_has_nothing_that_cannot_be_recorded(network: Path) -> None:
    graph = onnx.load(network / DECODER, load_external_data=False).graph
    assert {node.op_type for node in graph.node} <= ON_CUDA
    # Shapes come from constants: one that was computed would be computed on the host.
    fixed = {tensor.name for tensor in graph.initializer}
    assert all(node.input[1] in fixed for node in graph.node if node.op_type == "Reshape")


def test_answers_are_those_of_a_session_that_records_nothing(network: Path, recording: OnnxSession) -> None:
    plain = OnnxSession(network, threads=1)
    (expected, cache), (found, other) = (s.prefill([prompt(20)], capacity=40) for s in (plain, recording))
    np.testing.assert_array_equal(found, expected)
    for token in (5, 9):
        tokens = np.array([token])
        np.testing.assert_array_equal(recording.decode(tokens, other), plain.decode(tokens, cache))
    several = np.array([[7, 8, 9]])
    np.testing.assert_array_equal(recording.extend(several, other), plain.extend(several, cache))


def test_a_step_keeps_its_addresses_and_its_number(recording: OnnxSession) -> None:
    _, cache = recording.prefill([prompt(20)], capacity=40)
    first = recording._step(cache, 1)
    before = [first.logits.data_ptr(), *(copy.data_ptr() for copy in first.copies.values())]
    for token in (5, 9):
        recording.decode(np.array([token]), cache)
    again = recording._step(cache, 1)
    assert again is first
    assert [again.logits.data_ptr(), *(copy.data_ptr() for copy in again.copies.values())] == before
    assert number(recording, cache) != number(recording, cache, 3)  # another shape is another recording


def test_two_caches_at_once_are_recorded_apart(recording: OnnxSession) -> None:
    (_, one), (_, two) = (recording.prefill([prompt(20)], capacity=40) for _ in range(2))
    assert not set(addresses(one)) & set(addresses(two))
    assert number(recording, one) != number(recording, two)


def test_the_next_conversation_repeats_what_the_last_recorded(recording: OnnxSession) -> None:
    _, cache = recording.prefill([prompt(20)], capacity=40)
    recording.decode(np.array([5]), cache)
    kept, recorded = addresses(cache), number(recording, cache)
    del cache
    gc.collect()
    logits, cache = recording.prefill([prompt(30)], capacity=ROOM - 1)
    assert (addresses(cache), number(recording, cache)) == (kept, recorded)
    # What the last conversation left there is not seen.
    fresh, _ = OnnxSession(Path(recording.decoder._model_path).parent, threads=1).prefill(
        [prompt(30)], capacity=40
    )
    np.testing.assert_array_equal(logits, fresh)
    _, longer = recording.prefill([prompt(30)], capacity=ROOM + 1)
    assert number(recording, longer) != recorded


def test_prompts_are_not_recorded(recording: OnnxSession, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.onnx_runtime import recorded_as

    recording.after_prefill = recorded_as(-1)
    seen: list[Any] = []
    run = recording.run
    monkeypatch.setattr(recording, "run", lambda bound: (seen.append(bound.options), run(bound)))
    recording.prefill([prompt(20)], capacity=40)
    assert [options.get_run_config_entry("gpu_graph_id") for options in seen] == ["-1"]


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_gpu_that_does_not_start_is_not_replaced_by_the_cpu(network: Path) -> None:
    with pytest.raises(UserError, match="CUDAExecutionProvider cannot start: found no GPU, or not the libr"):
        open_model(network / DECODER, 1, CUDA)
