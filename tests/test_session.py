"""Both kinds of session: the same face, caches that do not mix, and clear refusals."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers.utils import logging

from bench.resources import question
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.export import export
from engines.onnx_runtime import open_model
from engines.onnx_session import OnnxSession
from engines.onnx_vision import VisionTower
from engines.processor import Inputs, Media
from engines.reference import ReferenceSession
from engines.session import Session, open_session
from tests.int4_checkpoints import write_int4_pair


@pytest.fixture(scope="module")
def artifact(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("session") / "artifact"
    export(Checkpoint.open(micro_checkpoint), out)
    return out


@pytest.fixture(scope="module", params=["onnx", "reference"])
def session(request: pytest.FixtureRequest, micro_checkpoint: Path, artifact: Path) -> Session:
    if request.param == "onnx":
        return OnnxSession(artifact, threads=1)
    return ReferenceSession(micro_checkpoint, dtype="float32", threads=1)


def text(*ids: int) -> Inputs:
    return Inputs.text(ids)


LONG, SHORT = text(7, 90, 211, 40, 5, 66, 301), text(12, 400, 33)


def test_open_session_goes_by_the_files(micro_checkpoint: Path, artifact: Path, tmp_path: Path) -> None:
    assert isinstance(open_session(artifact, threads=1), OnnxSession)
    assert isinstance(open_session(micro_checkpoint, threads=1), ReferenceSession)
    with pytest.raises(UserError, match=r"neither decoder\.onnx nor \*\.safetensors"):
        open_session(tmp_path)
    with pytest.raises(UserError, match="not a folder"):
        open_session(tmp_path / "nothing")


def test_keep_gives_the_last_positions(session: Session) -> None:
    every, _ = session.prefill([LONG], capacity=7, keep=7)
    some, _ = session.prefill([LONG, SHORT], capacity=7, keep=2)
    assert every.shape == (1, 7, session.config.text.vocab_size)
    assert every.dtype == some.dtype == np.float32
    np.testing.assert_allclose(some[0], every[0, -2:], atol=1e-4)


def test_pictures_are_timed_and_forgotten(session: Session) -> None:
    shown = question(session.config, 60)
    session.forget()
    first, _ = session.prefill([shown], capacity=61)
    took = session.vision_s
    assert took > 0
    session.prefill([LONG], capacity=7)
    assert session.vision_s < took
    if isinstance(session, OnnxSession):
        assert session.vision(shown).remembered == 1
        session.forget()
        assert session.vision(shown).remembered == 0
    again, _ = session.prefill([shown], capacity=61)
    np.testing.assert_array_equal(first, again)


def test_decode_continues_as_a_longer_prompt_would(session: Session) -> None:
    _, cache = session.prefill([LONG, SHORT], capacity=9)
    rows = [session.decode(np.array(tokens), cache) for tokens in ([9, 8], [70, 60])]
    for at, prompt in enumerate((LONG, SHORT)):
        continued = prompt.extend([(9, 8)[at], (70, 60)[at]])
        expected, _ = session.prefill([continued], capacity=9, keep=2)
        np.testing.assert_allclose(np.stack(rows)[:, at], expected[0], atol=1e-4)


@pytest.mark.parametrize("sizes", [(1, 3), (4,), (2, 1, 1)])
def test_extend_continues_as_a_longer_prompt_would(session: Session, sizes: tuple[int, ...]) -> None:
    tokens = np.array([[9, 70, 7, 90], [8, 60, 400, 33]])
    _, cache = session.prefill([LONG, SHORT], capacity=11)
    steps = [session.extend(part, cache) for part in np.split(tokens, np.cumsum(sizes)[:-1], axis=1)]
    found = np.concatenate(steps, axis=1)
    assert found.dtype == np.float32
    for row, prompt in enumerate((LONG, SHORT)):
        expected, _ = session.prefill([prompt.extend(tokens[row].tolist())], capacity=11, keep=4)
        np.testing.assert_allclose(found[row], expected[0], atol=1e-4)


def test_rewound_tokens_leave_no_trace(session: Session) -> None:
    _, cache = session.prefill([LONG, SHORT], capacity=14)
    session.extend(np.array([[9], [8]]), cache)
    session.extend(np.array([[70, 500, 4], [60, 3, 501]]), cache)
    cache.rewind(2)
    found = [session.decode(np.array(tokens), cache) for tokens in ([7, 400], [90, 33])]
    for row, prompt in enumerate((LONG, SHORT)):
        continued = prompt.extend([(9, 70, 7, 90), (8, 60, 400, 33)][row])
        expected, _ = session.prefill([continued], capacity=14, keep=2)
        np.testing.assert_allclose(np.stack(found)[:, row], expected[0], atol=1e-4)
    assert cache.lengths.tolist() == [11, 7]


def test_caches_do_not_mix(session: Session) -> None:
    def continued(prompt: Inputs) -> list[np.ndarray]:
        _, cache = session.prefill([prompt], capacity=12)
        return [session.decode(np.array([token]), cache) for token in (9, 70)]

    alone = continued(LONG), continued(SHORT)
    _, first = session.prefill([LONG], capacity=12)
    _, second = session.prefill([SHORT], capacity=12)
    for step, token in enumerate((9, 70)):
        for cache, expected in ((first, alone[0]), (second, alone[1])):
            np.testing.assert_array_equal(session.decode(np.array([token]), cache), expected[step])


def test_logits_outlive_the_next_step(session: Session) -> None:
    _, cache = session.prefill([LONG], capacity=13)
    for tokens in ([[9]], [[70, 7]]):
        first = session.extend(np.array(tokens), cache)
        kept = first.copy()
        session.extend(np.array(tokens) + 1, cache)
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.prefill([LONG], capacity=6), "7 tokens does not fit a cache of 6"),
        (lambda s: s.prefill([LONG], capacity=4097), "4097 tokens: the model ends at 4096"),
        (lambda s: s.prefill([LONG, SHORT], capacity=9, keep=4), "of 4 tokens or more"),
        (lambda s: s.prefill([], capacity=9), "expected at least one"),
        (lambda s: s.decode(np.array([1, 2]), s.prefill([LONG], capacity=9)[1]), "1 cached sequences"),
        (lambda s: s.extend(np.array([1, 2]), s.prefill([LONG], capacity=9)[1]), "1 cached sequences"),
        (lambda s: s.extend(np.empty((1, 0), int), s.prefill([LONG], capacity=9)[1]), "one or more"),
        (lambda s: s.extend(np.array([[1, 2, 3]]), s.prefill([LONG], capacity=9)[1]), "full at 9 tokens"),
        (lambda s: s.decode(np.array([1]), s.prefill([LONG], capacity=7)[1]), "full at 7 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(
    session: Session, call: Callable[[Session], object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        call(session)


def image_prompt(session: Session, value: float, tokens: int = 1) -> Inputs:
    """A prompt with room for `tokens` vision tokens and an image that makes one."""
    vision = session.config.vision
    width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    image = Media("image", (1, 2, 2), np.full((4, width), value, np.float32))
    prompt = text(7, *[session.config.image_token_id] * tokens, 8)
    return Inputs(prompt.input_ids, prompt.positions, (image,), prompt.next_position)


def test_media_must_make_the_prompts_tokens(artifact: Path) -> None:
    session = OnnxSession(artifact, threads=1)
    with pytest.raises(UserError, match="2 vision tokens, its media make 1"):
        session.prefill([image_prompt(session, 0, tokens=2)], capacity=9)


def test_text_alone_opens_no_vision_tower(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def spy(path: Path, *rest: Any) -> Any:
        opened.append(path.name)
        return open_model(path, *rest)

    monkeypatch.setattr("engines.onnx_vision.open_model", spy)
    session = OnnxSession(artifact, threads=1)
    session.prefill([LONG], capacity=9)
    assert opened == []
    session.prefill([image_prompt(session, 0)], capacity=9)
    session.prefill([image_prompt(session, 1)], capacity=9)
    assert opened == ["vision.onnx"]


def test_an_image_seen_before_is_not_encoded_again(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[float] = []
    encode = VisionTower._encode

    def spy(tower: VisionTower, media: Media) -> Any:
        encoded.append(float(media.pixels[0, 0]))
        return encode(tower, media)

    monkeypatch.setattr(VisionTower, "_encode", spy)
    session = OnnxSession(artifact, threads=1)
    logits = [session.prefill([image_prompt(session, value)], capacity=9)[0] for value in (0, 1, 0)]
    assert encoded == [0, 1]
    assert (logits[0] == logits[2]).all()
    assert (logits[0] != logits[1]).any()
    monkeypatch.setattr("engines.onnx_vision.REMEMBERED_BYTES", 1)
    for value in (2, 0, 0):
        session.prefill([image_prompt(session, value)], capacity=9)
    assert encoded == [0, 1, 2, 0]  # room for one: the image before it was forgotten


def answer_about_an_image(artifact: Path) -> None:
    """The vision tower is opened by the first image."""
    session = OnnxSession(artifact, threads=1)
    session.prefill([image_prompt(session, 0)], capacity=9)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "name", ["vision.onnx", "vision.onnx.data", "decoder.onnx", "decoder.onnx.data", "embedding.bin"]
)
@pytest.mark.parametrize("damage", [Path.unlink, truncate])
def test_damaged_artifact_is_one_clear_line(
    artifact: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    shutil.copytree(artifact, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / name)
    with pytest.raises(UserError, match=r"export the checkpoint again") as caught:
        answer_about_an_image(tmp_path)
    assert "\n" not in str(caught.value)


def test_unknown_execution_provider_is_refused(artifact: Path) -> None:
    with pytest.raises(UserError, match="provider NoSuchProvider: expected CPUExecutionProvider"):
        OnnxSession(artifact, provider="NoSuchProvider")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx2": True}, torch.float32), ({"avx2": True, "avx512_fp16": True}, torch.float16)],
)
def test_reference_runs_in_the_stored_type_where_the_cpu_does(
    micro_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: dict[str, bool],
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert ReferenceSession(micro_checkpoint, threads=1).model.dtype == expected


def test_reference_runs_in_the_type_asked_for(micro_checkpoint: Path) -> None:
    assert ReferenceSession(micro_checkpoint, dtype="bfloat16").model.dtype == torch.bfloat16
    with pytest.raises(UserError, match="dtype int8: expected one of float32, bfloat16, float16"):
        ReferenceSession(micro_checkpoint, dtype="int8")


def test_reference_loads_compressed_tensors(micro_checkpoint: Path, tmp_path: Path) -> None:
    packed, dense = write_int4_pair(micro_checkpoint, tmp_path)
    found, _ = ReferenceSession(packed, dtype="float32", threads=1).prefill([LONG], capacity=9, keep=7)
    expected, _ = ReferenceSession(dense).prefill([LONG], capacity=9, keep=7)
    original, _ = ReferenceSession(micro_checkpoint, dtype="float32").prefill([LONG], capacity=9, keep=7)
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)
    assert np.linalg.norm(found - original) > 1e-2 * np.linalg.norm(expected)
    assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()


def test_reference_refuses_an_incomplete_checkpoint(micro_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(micro_checkpoint, tmp_path / "incomplete")
    weights = load_file(tmp_path / "incomplete" / "model.safetensors")
    del weights["model.visual.merger.norm.bias"]
    save_file(weights, tmp_path / "incomplete" / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.visual\.merger\.norm\.bias is missing"):
        ReferenceSession(tmp_path / "incomplete")


def test_reference_leaves_logging_and_warnings_alone(
    micro_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), warnings.filters[:]
    ReferenceSession(micro_checkpoint, threads=1)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled(), warnings.filters[:]) == before
    assert capsys.readouterr() == ("", "")
