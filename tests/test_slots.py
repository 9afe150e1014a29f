"""Continuous batching: every sequence's tokens are those it gets alone, whatever runs beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.cache import untouched_zeros
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.export import export, export_standard
from engines.onnx_session import OnnxSession
from engines.processor import Inputs, Processor
from engines.slots import OnnxSlots, Slot, content_ids

LENGTH = 12  # tokens of each answer


@pytest.fixture(scope="module")
def processor(micro_checkpoint: Path) -> Processor:
    return Processor.load(micro_checkpoint)


@pytest.fixture(scope="module")
def prompts(processor: Processor) -> list[Inputs]:
    """Text and pictures of many lengths."""
    random = np.random.default_rng(0)
    made = []
    for number in range(10):
        pictures = [
            Image.fromarray(random.integers(0, 256, (48, 64, 3), np.uint8)) for _ in range(number % 3)
        ]
        text = " ".join(random.choice(["Code", "of", "Zafolo?", "BORA?", "what", "colour"], 3 + 5 * number))
        content = [{"type": "image", "image": picture} for picture in pictures]
        made.append(processor([{"role": "user", "content": [*content, {"type": "text", "text": str(text)}]}]))
    return made


@pytest.fixture(scope="module", params=["fp32 cache", "int8 cache", "standard operators"])
def session(
    request: pytest.FixtureRequest,
    micro_checkpoint: Path,
    prompts: list[Inputs],
    tmp_path_factory: pytest.TempPathFactory,
) -> OnnxSession:
    out, checkpoint = tmp_path_factory.mktemp("slots"), Checkpoint.open(micro_checkpoint)
    if request.param == "standard operators":
        export_standard(checkpoint, out)
    else:
        export(checkpoint, out, cache_prompts=prompts[:4] if request.param == "int8 cache" else [])
    session = OnnxSession(out, threads=1)
    types = {"fp32 cache": np.float32, "int8 cache": np.int8, "standard operators": np.float16}
    assert session.cache_dtype == types[request.param]
    return session


def alone(session: OnnxSession, prompt: Inputs, length: int = LENGTH) -> list[int]:
    """Greedy tokens, end tokens included: a sequence goes on after them."""
    logits, cache = session.prefill([prompt], capacity=len(prompt.input_ids) + length)
    tokens = [int(logits[0, -1].argmax())]
    while len(tokens) < length:
        tokens.append(int(session.decode(np.array(tokens[-1:]), cache)[0].argmax()))
    return tokens


def begin(slots: OnnxSlots, prompt: Inputs, said: dict[Slot, list[int]], chunk: int = 16) -> Slot:
    slot = slots.open(prompt, slots.see(prompt))
    assert slot is not None
    while (logits := slots.prefill(slot, chunk)) is None:
        pass
    said[slot] = [int(logits.argmax())]
    return slot


def step(slots: OnnxSlots, said: dict[Slot, list[int]]) -> None:
    rows = slots.decode(np.array([said[slot][-1] for slot in slots.active])).argmax(-1)
    for slot, token in zip(slots.active, rows.tolist(), strict=True):
        said[slot].append(token)


@pytest.mark.parametrize("seed", range(3))
def test_together_as_alone(session: OnnxSession, prompts: list[Inputs], seed: int) -> None:
    """Sequences begin and end in any order, and chunks of prompts run between the steps of others."""
    random = np.random.default_rng(seed)
    slots, said = OnnxSlots(session, 4, 256), {}
    waiting = [prompts[at] for at in random.permutation(len(prompts))]
    asked: dict[Slot, Inputs] = {}
    finished: list[tuple[Inputs, list[int]]] = []
    filling: Slot | None = None
    while waiting or filling or slots.active:
        if waiting and not filling and (filling := slots.open(waiting[0], slots.see(waiting[0]))):
            asked[filling] = waiting.pop(0)
        if filling:
            logits = slots.prefill(filling, int(random.integers(1, 40)))
            if logits is not None:
                said[filling], filling = [int(logits.argmax())], None
        if slots.active:
            step(slots, said)
        for slot in [slot for slot in slots.active if len(said[slot]) >= LENGTH]:
            finished.append((asked[slot], said[slot][:LENGTH]))
            slots.close(slot)
    assert len(finished) == len(prompts)
    for prompt, tokens in finished:
        assert tokens == alone(session, prompt)


def test_a_conversation_goes_on_in_its_row(session: OnnxSession, prompts: list[Inputs]) -> None:
    slots, said = OnnxSlots(session, 3, 256), {}
    first = begin(slots, prompts[7], said)
    other = begin(slots, prompts[2], said)
    for _ in range(5):
        step(slots, said)
    slots.close(first)
    turn = prompts[7].extend([*said[first], 7, 90, 211])
    slot = slots.open(turn, slots.see(turn))
    assert slot is first
    assert slot.length == len(prompts[7].input_ids) + 5  # the last token said was never computed
    while (logits := slots.prefill(slot, 2)) is None:
        step(slots, said)
    assert int(logits.argmax()) == alone(session, turn, 1)[0]
    assert said[other] == alone(session, prompts[2], len(said[other]))


def test_a_common_beginning_is_copied_from_a_running_sequence(
    session: OnnxSession, prompts: list[Inputs]
) -> None:
    slots, said = OnnxSlots(session, 3, 256), {}
    begin(slots, prompts[4], said)
    running = begin(slots, prompts[8], said)
    prompt = prompts[8].extend([7, 90])
    slot = slots.open(prompt, slots.see(prompt))
    assert slot not in (None, running)
    assert slot.length == len(prompts[8].input_ids)
    said[slot] = [int(slots.prefill(slot, 512).argmax())]
    for _ in range(4):
        step(slots, said)
    assert said[slot] == alone(session, prompt, 5)
    assert said[running] == alone(session, prompts[8], 5)


def test_the_longest_unused_row_is_given_away(session: OnnxSession, prompts: list[Inputs]) -> None:
    slots, said = OnnxSlots(session, 2, 256), {}
    text = prompts[0], prompts[3], prompts[6]
    for prompt in text[:2]:
        slots.close(begin(slots, prompt, said))
    slots.close(begin(slots, text[2], said))
    kept = [slots.open(prompt.extend([9]), slots.see(prompt)) for prompt in text[:0:-1]]
    assert [slot.length for slot in kept if slot] == [len(prompt.input_ids) for prompt in text[:0:-1]]
    assert slots.open(text[0], slots.see(text[0])) is None  # both are busy


def test_other_pictures_are_other_content(processor: Processor) -> None:
    def prompt(shade: int) -> Inputs:
        content = [
            {"type": "image", "image": Image.new("RGB", (64, 48), (shade, 0, 0))},
            {"type": "text", "text": "colour?"},
        ]
        return processor([{"role": "user", "content": content}])

    red, same, dark = (content_ids(prompt(shade), processor.config) for shade in (200, 200, 60))
    assert (red == same).all()
    vision = red < 0
    assert vision.sum() == 12
    assert (vision == (red != dark)).all()
    assert len(np.unique(red[vision])) == 12


def test_what_cannot_be_is_refused(session: OnnxSession, prompts: Sequence[Inputs]) -> None:
    size = len(prompts[5].input_ids)
    with pytest.raises(UserError, match="slots of 5000 tokens"):
        OnnxSlots(session, 2, 5000)
    with pytest.raises(UserError, match=f"{size} tokens: the context has {size}"):
        OnnxSlots(session, 2, size).open(prompts[5], OnnxSlots(session, 1, size).see(prompts[5]))
    slots, said = OnnxSlots(session, 2, size + 1), {}
    begin(slots, prompts[5], said)
    step(slots, said)
    with pytest.raises(UserError, match="full at"):
        step(slots, said)


def test_a_context_that_nobody_fills_takes_no_memory() -> None:
    """A few tokens of each of 256 heads with room for 4,096: pages of 2 MB would make it 512 MB."""
    before = resident()
    keys = untouched_zeros((256, 4096, 128), np.float32)
    keys[:, :8] = 1
    assert not keys[:, 8:16].any()
    assert resident() - before < 50e6


def resident() -> int:
    """Bytes of memory this process holds now."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024
