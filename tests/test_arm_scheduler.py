"""Whose turn it is: fairness, cancellation, failure, and answers that do not depend on company."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.export import export
from engines.generate import generate
from engines.onnx_session import OnnxSession
from engines.onnx_vision import VisionTokens
from engines.processor import Inputs, Processor
from engines.sampling import Sampling
from engines.slots import OnnxSlots, Slot
from serve.arm import scheduler as module
from serve.arm.metrics import Metrics
from serve.arm.scheduler import Scheduler
from serve.arm.sequence import Answer, Rules, Token
from serve.arm.turns import Client


class Recording(OnnxSlots):
    """Slots that keep a log of what they were asked, and can be made to fail."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.log: list[tuple[str, int]] = []
        self.admitted: list[Inputs] = []
        self.broken = False

    def open(self, prompt: Inputs, vision: VisionTokens) -> Slot | None:
        if slot := super().open(prompt, vision):
            self.admitted.append(prompt)
        return slot

    def prefill(self, slot: Slot, limit: int) -> Any:
        self.log.append(("prefill", limit))
        return super().prefill(slot, limit)

    def decode(self, tokens: Any) -> Any:
        if self.broken:
            raise RuntimeError("out of memory")
        self.log.append(("decode", len(tokens)))
        return super().decode(tokens)


@pytest.fixture(scope="module")
def session(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxSession:
    out = tmp_path_factory.mktemp("scheduler")
    export(Checkpoint.open(micro_checkpoint), out)
    return OnnxSession(out, threads=1)


@pytest.fixture(scope="module")
def processor(micro_checkpoint: Path) -> Processor:
    return Processor.load(micro_checkpoint)


@pytest.fixture
def slots(session: OnnxSession) -> Recording:
    return Recording(session, 3, 512)


@pytest.fixture
def scheduler(slots: Recording) -> Iterator[Scheduler]:
    made = Scheduler(slots, Metrics())
    made.start()
    yield made
    made.stop()


class Listener:
    """What one answer emitted."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[Token | Exception] = queue.SimpleQueue()

    def rest(self) -> list[Token]:
        """All tokens up to the last."""
        tokens = []
        while True:
            token = self.queue.get(timeout=20)
            if isinstance(token, Exception):
                raise token
            tokens.append(token)
            if token.finish_reason:
                return tokens


Submit = Callable[..., tuple[Answer, Listener]]


@pytest.fixture
def submit(scheduler: Scheduler, slots: Recording, processor: Processor) -> Submit:
    def submit(
        inputs: Inputs, *, eos: bool = True, constraint: Any = None, **rules: Any
    ) -> tuple[Answer, Listener]:
        heard, vision = Listener(), slots.see(inputs)
        ends = slots.config.eos_token_ids if eos else ()
        emit, tokenizer = heard.queue.put, processor.tokenizer
        made = Answer(inputs, vision, Rules(**rules), tokenizer, ends, emit, constraint)
        scheduler.submit(made)
        return made, heard

    return submit


def prompt(processor: Processor, text: str) -> Inputs:
    return processor([{"role": "user", "content": text}])


def test_clients_get_slots_in_turn(slots: Recording, processor: Processor) -> None:
    """Fifty requests of one client, and then a few of others."""
    many, bob, eve = Client("10.0.0.1"), Client("10.0.0.2", "bob"), Client("10.0.0.2", "eve")
    scheduler, names, heard = Scheduler(slots, Metrics()), dict[Inputs, str](), []
    for client, name, count in ((many, "many", 50), (bob, "bob", 3), (eve, "eve", 1)):
        for _ in range(count):
            inputs = prompt(processor, f"BORA? {len(names)}")
            names[inputs] = name
            heard.append(Listener())
            emit, vision = heard[-1].queue.put, slots.see(inputs)
            rules = Rules(max_tokens=2)
            scheduler.submit(Answer(inputs, vision, rules, processor.tokenizer, (), emit, client=client))
    scheduler.start()
    for listener in heard:
        listener.rest()
    scheduler.stop()
    order = [names[inputs] for inputs in slots.admitted]
    assert order[:8] == ["many", "bob", "many", "eve", "many", "bob", "many", "bob"]
    assert order[8:] == ["many"] * 46


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_do_not_depend_on_company(
    submit: Submit, session: OnnxSession, processor: Processor, temperature: float
) -> None:
    prompts = [prompt(processor, f"Code of Zafolo? {'BORA ' * (at % 5)}{at}") for at in range(12)]
    samplings = [Sampling(temperature=temperature, seed=at) for at in range(12)]
    heard = [
        submit(inputs, max_tokens=10 + at, sampling=sampling)[1]
        for at, (inputs, sampling) in enumerate(zip(prompts, samplings, strict=True))
    ]
    for at, (inputs, sampling, listener) in enumerate(zip(prompts, samplings, heard, strict=True)):
        expected = generate(session, processor, inputs, max_tokens=10 + at, sampling=sampling)
        tokens = listener.rest()
        assert tuple(token.token_id for token in tokens) == expected.token_ids
        assert "".join(token.text for token in tokens) == expected.text
        assert tokens[-1].finish_reason == expected.finish_reason


def test_streams_flow_while_a_long_prompt_is_computed(
    submit: Submit, slots: Recording, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALL", 0.0)
    _, running = submit(prompt(processor, "BORA?"), eos=False, max_tokens=400)
    running.queue.get(timeout=20)
    slots.log.clear()
    _, late = submit(prompt(processor, "word " * 90), max_tokens=1)
    late.rest()
    chunks = [at for at, (what, _) in enumerate(slots.log) if what == "prefill"]
    assert len(chunks) >= 5
    assert {slots.log[at][1] for at in chunks} == {module.SMALLEST}
    assert all(slots.log[at + 1] == ("decode", 1) for at in chunks[:-1])


def test_nobody_running_means_large_chunks(submit: Submit, slots: Recording, processor: Processor) -> None:
    submit(prompt(processor, "word " * 90), max_tokens=1)[1].rest()
    assert slots.log == [("prefill", module.CHUNK)]


def test_who_leaves_is_out_within_a_step(submit: Submit, slots: Recording, processor: Processor) -> None:
    made = [submit(prompt(processor, f"BORA? {at}"), eos=False, max_tokens=300) for at in range(5)]
    for _, heard in made[:3]:
        heard.queue.get(timeout=20)
    made[3][0].cancelled = True  # waits for a slot
    gone, heard = made[0]
    gone.cancelled = True
    said = len(gone.said)
    assert len(made[4][1].rest()) == 300  # took the slot
    assert (
        len(gone.said) <= said + 2
    )  # the step under way when the number was read, and when the flag was set
    assert made[3][0].said == []
    for _, other in made[1:3]:
        other.rest()
    deadline = time.monotonic() + 10
    while slots.active and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not slots.active


def test_a_failure_reaches_everyone(
    submit: Submit,
    slots: Recording,
    scheduler: Scheduler,
    processor: Processor,
    capfd: pytest.CaptureFixture[str],
) -> None:
    made = [submit(prompt(processor, "BORA?"), eos=False, max_tokens=300) for _ in range(5)]
    slots.broken = True
    made.append(submit(prompt(processor, "BORA?"), max_tokens=3))
    for _, heard in made:
        with pytest.raises(RuntimeError, match="out of memory"):
            heard.rest()
    assert isinstance(scheduler.failure, RuntimeError)
    with pytest.raises(RuntimeError, match="out of memory"):
        submit(prompt(processor, "BORA?"), max_tokens=3)[1].rest()
    assert "out of memory" in capfd.readouterr().err


def test_an_answers_own_error_leaves_the_others(submit: Submit, processor: Processor) -> None:
    class Refusing:
        complete = False

        def apply(self, logits: Any) -> Any:
            return logits

        def accept(self, token: int) -> None:
            raise UserError("not in the grammar")

    inputs = prompt(processor, "BORA?")
    _, fine = submit(inputs, eos=False, max_tokens=50)
    _, heard = submit(inputs, eos=False, constraint=Refusing(), max_tokens=9)
    with pytest.raises(UserError, match="not in the grammar"):
        heard.rest()
    assert len(fine.rest()) == 50


def test_a_prompt_that_cannot_be_computed_leaves_the_others(
    submit: Submit, slots: Recording, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, fine = submit(prompt(processor, "BORA?"), eos=False, max_tokens=100)
    fine.queue.get(timeout=20)

    def prefill(slot: Slot, limit: int) -> Any:
        raise UserError("too many patches")

    monkeypatch.setattr(slots, "prefill", prefill)
    _, heard = submit(prompt(processor, "BORA?"), max_tokens=9)
    with pytest.raises(UserError, match="too many patches"):
        heard.rest()
    monkeypatch.undo()
    assert len(fine.rest()) == 99
    assert submit(prompt(processor, "BORA?"), max_tokens=9)[1].rest()


def test_logprobs_are_the_models_own(submit: Submit, session: OnnxSession, processor: Processor) -> None:
    inputs = prompt(processor, "Code of Zafolo?")
    logits = session.prefill([inputs], capacity=100)[0][0, -1].astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum())
    token = submit(inputs, max_tokens=1, logprobs=5, sampling=Sampling(temperature=2.0, seed=3))[1].rest()[0]
    assert token.logprob == pytest.approx(expected[token.token_id], abs=1e-4)
    best = np.argsort(-expected)[:5]
    assert [at for at, _ in token.likeliest] == best.tolist()
    assert [value for _, value in token.likeliest] == pytest.approx(expected[best], abs=1e-4)
