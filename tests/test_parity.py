"""The ONNX graphs against transformers in fp32: the same logits and the same greedy tokens."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

from engines import bounded_memory
from engines.checkpoint import Checkpoint
from engines.export import export, export_standard
from engines.onnx_session import OnnxSession
from engines.processor import Inputs, Processor
from engines.reference import ReferenceSession
from engines.session import Session
from tests.checkpoints import FAMILY, edit_json, write_checkpoint

TOLERANCE = {np.float32: 1e-5, np.float16: 2e-3}  # relative L2 error of logits, by what a graph computes in
STEPS = 5  # greedy tokens after the prompt

# The layer widths of Qwen3-VL-2B with few layers; fp16, so that the stored weights are the checkpoint's.
TRUE_WIDTHS: dict[str, Any] = {
    "layers": 3,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "heads": 16,
    "kv_heads": 8,
    "head_dim": 128,
    "depth": 3,
    "vision_hidden_size": 1024,
    "vision_intermediate_size": 4096,
    "vision_heads": 16,
    "patch_size": 16,
    "position_embeddings": 2304,
    "deepstack": (0, 1, 2),
    "dtype": torch.float16,
}
# Every size unlike the micro checkpoint's, where the architecture leaves the choice.
OTHER_SHAPE: dict[str, Any] = {
    "layers": 3,
    "hidden_size": 96,
    "intermediate_size": 160,
    "heads": 6,
    "kv_heads": 3,
    "head_dim": 16,
    "depth": 4,
    "vision_hidden_size": 72,
    "vision_intermediate_size": 120,
    "vision_heads": 3,
    "patch_size": 12,
    "position_embeddings": 49,
    "deepstack": (1, 2, 3),
    "tied": False,
    "shards": 2,
}


@dataclass(frozen=True)
class Model:
    """An exported checkpoint and what transformers makes of the cases: logits [S + STEPS, V] of each."""

    artifacts: dict[str, Path]  # by dialect
    processor: Processor
    expected: dict[str, NDArray[np.float32]]


def image(width: int, height: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def cases(processor: Processor) -> dict[str, Inputs]:
    """Prompts in every kind of media; sizes are in vision tokens, so that any patch size fits."""
    side = processor.config.vision.patch_size * processor.config.vision.spatial_merge_size

    def picture(width: int, height: int, seed: int = 0) -> dict[str, Any]:
        return {"type": "image", "image": image(width * side, height * side, seed)}

    def video(frames: int, width: int, height: int) -> dict[str, Any]:
        return {
            "type": "video",
            "video": [image(width * side, height * side, i) for i in range(frames)],
            "fps": 2.0,
        }

    def prompt(*content: dict[str, Any] | str) -> Inputs:
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        return processor([{"role": "user", "content": parts}])

    return {
        "text": prompt("What is the code of BORA?"),
        "one image": prompt(picture(4, 3), "How many red circles?"),
        "two images": prompt("First", picture(4, 3), "then", picture(2, 5, seed=1), "what differs?"),
        "video": prompt(video(6, 3, 2), "What moves?"),
        "image and video": prompt(picture(3, 2), "and", video(4, 2, 3), "which is brighter?"),
    }


def follow(session: Session, prompts: list[Inputs]) -> list[NDArray[np.float32]]:
    """For each prompt the logits [S + STEPS, V] of its positions and of the greedy tokens after it."""
    shortest = min(len(prompt.input_ids) for prompt in prompts)
    capacity = max(len(prompt.input_ids) for prompt in prompts) + STEPS
    logits, cache = session.prefill(prompts, capacity=capacity, keep=shortest)
    rows = [logits]
    for _ in range(STEPS):
        rows.append(session.decode(rows[-1][:, -1].argmax(-1), cache)[:, None])
    return list(np.concatenate(rows, axis=1))


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_equal(session: OnnxSession, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    assert error(found, expected) <= TOLERANCE[session.inputs.floats]
    assert found[-STEPS - 1 :].argmax(-1).tolist() == expected[-STEPS - 1 :].argmax(-1).tolist()


def test_the_baseline_reads_a_long_prompt_in_chunks(
    micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = ReferenceSession(micro_checkpoint, dtype="float32", threads=1)
    prompts = list(cases(Processor.load(micro_checkpoint)).values())
    whole = follow(reference, prompts)
    monkeypatch.setattr(bounded_memory, "CHUNK", 5)  # pictures and padding are cut anywhere
    for found, expected in zip(follow(reference, prompts), whole, strict=True):
        assert error(found, expected) <= TOLERANCE[np.float32]


def build(checkpoint: Path, out: Path) -> Model:
    """Export and run the reference, one after the other: both at once would take twice the memory."""
    processor = Processor.load(checkpoint)
    reference = ReferenceSession(checkpoint, dtype="float32", threads=1)
    expected = {name: follow(reference, [prompt])[0] for name, prompt in cases(processor).items()}
    del reference
    gc.collect()
    export(Checkpoint.open(checkpoint), out / "fused")
    export_standard(Checkpoint.open(checkpoint), out / "standard")
    return Model({dialect: out / dialect for dialect in ("fused", "standard")}, processor, expected)


@pytest.fixture(scope="module", params=["micro", "true widths", "other shape fp32", "8B bf16"])
def model(
    request: pytest.FixtureRequest, micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    directory = tmp_path_factory.mktemp("parity")
    shapes: dict[str, dict[str, Any]] = {
        "true widths": TRUE_WIDTHS,
        "other shape fp32": OTHER_SHAPE,
        "8B bf16": FAMILY["8B"] | {"layers": 3, "dtype": torch.bfloat16},
    }
    if request.param == "micro":
        checkpoint = micro_checkpoint
    else:
        checkpoint = write_checkpoint(directory / "checkpoint", micro_checkpoint, **shapes[request.param])
    if request.param == "8B bf16":
        edit_json(checkpoint / "config.json", vision_config__rope_parameters__rope_theta=700.0)
    yield build(checkpoint, directory / "onnx")
    shutil.rmtree(directory)


@pytest.fixture(scope="module", params=["fused", "standard"])
def session(model: Model, request: pytest.FixtureRequest) -> OnnxSession:
    return OnnxSession(model.artifacts[request.param], threads=1)


@pytest.mark.parametrize("case", ["text", "one image", "two images", "video", "image and video"])
def test_logits_and_tokens_equal_transformers(model: Model, session: OnnxSession, case: str) -> None:
    prompt = cases(model.processor)[case]
    session.chunk = 512
    assert_equal(session, follow(session, [prompt])[0], model.expected[case])


def test_prefill_in_chunks_equals_transformers(model: Model, session: OnnxSession) -> None:
    session.chunk = 11
    assert_equal(
        session, follow(session, [cases(model.processor)["two images"]])[0], model.expected["two images"]
    )


@pytest.mark.parametrize("case", ["text", "two images", "image and video"])
def test_several_tokens_at_once_equal_transformers(model: Model, session: OnnxSession, case: str) -> None:
    prompt, expected = cases(model.processor)[case], model.expected[case]
    logits, cache = session.prefill([prompt], capacity=len(expected) + 1, keep=len(expected) - STEPS)
    tokens = expected[-STEPS - 1 : -1].argmax(-1)
    draft = session.extend(np.append(tokens[0], 1 - tokens[1:] % 2)[None], cache)  # only its first is right
    cache.rewind(len(tokens) - 1)
    rest = session.extend(tokens[None, 1:], cache)
    assert_equal(session, np.concatenate([logits[0], draft[0, :1], rest[0]]), expected)


@pytest.mark.parametrize(
    ("pair", "chunk"), [(("text", "image and video"), 512), (("two images", "one image"), 18)]
)
def test_padded_batch_equals_transformers(
    model: Model, session: OnnxSession, pair: tuple[str, str], chunk: int
) -> None:
    session.chunk = chunk
    for name, found in zip(
        pair, follow(session, [cases(model.processor)[name] for name in pair]), strict=True
    ):
        assert_equal(session, found, model.expected[name][-len(found) :])


# What the same tolerance must refuse: a graph with one mistake.


def no_deepstack(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.name.endswith(".deepstack"):
            node.op_type = "Identity"
            del node.input[1]


def _set_frequencies(graph: onnx.GraphProto, axis: NDArray[np.int64]) -> None:
    (tensor,) = (tensor for tensor in graph.initializer if tensor.name == "rotary.frequencies")
    frequencies = numpy_helper.to_array(tensor).sum(axis=0)
    moved = np.where(axis == np.arange(3)[:, None], frequencies, 0).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))


def chunked_mrope(graph: onnx.GraphProto) -> None:
    _set_frequencies(graph, np.repeat([0, 1, 2], [6, 5, 5]))


def temporal_positions_only(graph: onnx.GraphProto) -> None:
    _set_frequencies(graph, np.zeros(16, np.int64))


def unchanged(graph: onnx.GraphProto) -> None:
    pass


@pytest.mark.parametrize(
    ("mutate", "fails"),
    [(unchanged, False), (no_deepstack, True), (chunked_mrope, True), (temporal_positions_only, True)],
)
def test_tolerance_catches_a_wrong_graph(
    micro_checkpoint: Path, tmp_path: Path, mutate: Callable[[onnx.GraphProto], None], fails: bool
) -> None:
    export(Checkpoint.open(micro_checkpoint), tmp_path)
    graph = onnx.load(tmp_path / "decoder.onnx", load_external_data=False)
    mutate(graph.graph)
    (tmp_path / "decoder.onnx").write_bytes(graph.SerializeToString())
    prompt = cases(Processor.load(tmp_path))["one image"]
    expected = follow(ReferenceSession(micro_checkpoint, dtype="float32", threads=1), [prompt])[0]
    found = follow(OnnxSession(tmp_path, threads=1), [prompt])[0]
    prompt_error = error(found[:-STEPS], expected[:-STEPS])  # later tokens differ once a greedy choice does
    tolerance = TOLERANCE[np.float32]
    assert prompt_error > 100 * tolerance if fails else prompt_error <= tolerance
