"""Generation: stop conditions and text on scripted tokens, whole answers against transformers' generate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

import engines.generate
from engines.cache import Cache
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.export import export
from engines.generate import Chunk, Sampling, TextStream, generate, generate_batch, stream
from engines.onnx_session import OnnxSession
from engines.processor import Inputs, Processor
from engines.reference import ReferenceSession


class Script:
    """A session that says the given tokens, whatever it is told."""

    def __init__(self, processor: Processor, tokens: Sequence[int]) -> None:
        self.config: Any = SimpleNamespace(eos_token_ids=processor.config.eos_token_ids)
        self.tokens = list(tokens)
        self.vocabulary = processor.config.text.vocab_size
        self.said = 0
        self.capacity = 0

    def _say(self) -> NDArray[np.float32]:
        self.said += 1
        return np.eye(self.vocabulary, dtype=np.float32)[[self.tokens[self.said - 1]]]

    def prefill(
        self, prompts: Sequence[Inputs], *, capacity: int, keep: int = 1
    ) -> tuple[NDArray[np.float32], Cache]:
        self.capacity = capacity
        return self._say()[None], Cache(np.zeros(1, np.int64), np.zeros(1, np.int64), capacity, None)

    def extend(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        assert tokens.tolist() == [[self.tokens[self.said - 1]]]
        return self._say()[None]

    def decode(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        return self.extend(tokens[:, None], cache)[:, 0]


@pytest.fixture(scope="module")
def processor(micro_checkpoint: Path) -> Processor:
    return Processor.load(micro_checkpoint)


@pytest.fixture(scope="module")
def tokenizer(processor: Processor) -> Tokenizer:
    return processor.tokenizer


@pytest.fixture(scope="module")
def session(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxSession:
    out = tmp_path_factory.mktemp("generate") / "artifact"
    export(Checkpoint.open(micro_checkpoint), out)
    return OnnxSession(out, threads=1)


def prompt(*ids: int) -> Inputs:
    return Inputs.text(ids)


def run(
    processor: Processor, tokens: Sequence[int], max_tokens: int, stop: Sequence[str] = ()
) -> list[Chunk]:
    script = Script(processor, tokens)
    return list(stream(script, processor, prompt(1, 2, 3), max_tokens=max_tokens, stop=stop))


def encode(processor: Processor, text: str) -> list[int]:
    ids: list[int] = processor.tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def test_ends_at_an_end_token(processor: Processor) -> None:
    end = processor.config.eos_token_ids[0]
    ids = encode(processor, "count 3")
    chunks = run(processor, [*ids, end, 5, 6], 50)
    assert [chunk.token_id for chunk in chunks] == [*ids, end]
    assert "".join(chunk.text for chunk in chunks) == "count 3"
    assert [chunk.finish_reason for chunk in chunks] == [None] * len(ids) + ["stop"]


def test_ends_at_the_length(processor: Processor) -> None:
    ids = encode(processor, "count 3 and 4")
    script = Script(processor, ids)
    chunks = list(stream(script, processor, prompt(1, 2, 3), max_tokens=2))
    assert [chunk.token_id for chunk in chunks] == ids[:2]
    assert chunks[-1].finish_reason == "length"
    assert script.said == 2  # nothing is computed after the last token
    assert script.capacity >= 3 + 2 - 1


def test_stop_string_across_tokens_is_never_shown(processor: Processor) -> None:
    ids = encode(processor, "red, blue\n\nUser: more")
    assert len(encode(processor, "\n\nUser:")) > 2
    chunks = run(processor, ids, len(ids), stop=["\n\nUser:", "zebra"])
    assert "".join(chunk.text for chunk in chunks) == "red, blue"
    assert chunks[-1].finish_reason == "stop"
    assert len(chunks) < len(ids)


def test_what_only_began_like_a_stop_string_is_shown(processor: Processor) -> None:
    ids = encode(processor, "red\n\nUse")
    chunks = run(processor, ids, len(ids), stop=["\n\nUser:"])
    assert "".join(chunk.text for chunk in chunks) == "red\n\nUse"
    assert chunks[-1].finish_reason == "length"


def test_characters_of_several_tokens_come_whole(processor: Processor) -> None:
    text = "né 世界 😀!"
    ids = encode(processor, text)
    pieces = [chunk.text for chunk in run(processor, ids, len(ids))]
    assert "".join(pieces) == text
    assert "�" not in "".join(pieces)
    assert pieces.count("") >= 6  # bytes held back until their character is complete
    cut = [chunk.text for chunk in run(processor, ids[:-2], len(ids) - 2)]
    assert text.startswith("".join(cut))


@pytest.mark.parametrize("seed", range(20))
def test_text_stream_equals_decoding_everything(tokenizer: Tokenizer, seed: int) -> None:
    random = np.random.default_rng(seed)
    ids = [int(token) for token in random.integers(0, 512, 60)]
    whole = tokenizer.decode(ids)
    # A stop string of half a character is none: what it would match depends on where decoding pauses.
    at = int(random.choice([i for i in range(len(whole) - 6) if "�" not in whole[i : i + 4]]))
    stops = [whole[at : at + 4], whole[at + 1 : at + 3], "never said"][seed % 3 :]
    stream = TextStream(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    shown = "".join(pieces) + stream.flush()
    # By definition: the shortest prefix of tokens whose text holds a stop string, cut where that begins.
    texts = (tokenizer.decode(ids[:count]) for count in range(1, len(ids) + 1))
    ended = (text for text in texts if any(stop in text for stop in stops))
    expected = next(ended, None)
    if expected is None:
        assert not stream.stopped
        assert shown == whole.rstrip("�")
    else:
        assert stream.stopped
        assert shown == expected[: min(expected.find(stop) for stop in stops if stop in expected)]


def questions(processor: Processor) -> list[Inputs]:
    def ask(*content: Any) -> Inputs:
        parts = [
            {"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p}
            for p in content
        ]
        return processor([{"role": "user", "content": parts}])

    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    return [
        ask("BORA?"),
        ask(Image.fromarray(noise), "how many circles?"),
        ask("What is the code of ABBA?"),
        ask(Image.new("RGB", (32, 48), "red"), "and", Image.fromarray(noise), "which is red?"),
    ]


def test_greedy_equals_transformers_generate(
    micro_checkpoint: Path, processor: Processor, session: OnnxSession
) -> None:
    reference = ReferenceSession(micro_checkpoint, dtype="float32", threads=1)
    for inputs in (questions(processor)[0], questions(processor)[2]):
        ids = torch.from_numpy(inputs.input_ids)[None]
        output = reference.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        completion = generate(session, processor, inputs, max_tokens=12)
        assert list(completion.token_ids) == output[0, ids.shape[1] :].tolist()


def test_batch_equals_each_alone(processor: Processor, session: OnnxSession) -> None:
    prompts = questions(processor)
    batch = generate_batch(session, processor, prompts, 10)
    for inputs, together in zip(prompts, batch, strict=True):
        alone = generate(session, processor, inputs, max_tokens=10)
        for field in ("text", "token_ids", "prompt_tokens", "output_tokens", "finish_reason"):
            assert getattr(together, field) == getattr(alone, field)
    assert len({completion.output_tokens for completion in batch}) > 1  # they did not all end together


def test_equal_seeds_give_equal_text(processor: Processor, session: OnnxSession) -> None:
    inputs = questions(processor)[0]

    def sample(seed: int) -> tuple[int, ...]:
        sampling = Sampling(temperature=5.0, top_k=50, seed=seed)
        return generate(session, processor, inputs, max_tokens=12, sampling=sampling).token_ids

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_times_are_to_the_first_between_and_to_the_last(
    monkeypatch: pytest.MonkeyPatch, processor: Processor
) -> None:
    clock = iter([100.0, 100.5, 100.6, 100.9])  # called, then one reading for each token
    monkeypatch.setattr(engines.generate, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    shown: list[str] = []
    script = Script(processor, encode(processor, "abc")[:3])
    completion = generate(script, processor, prompt(1, 2), max_tokens=3, on_text=shown.append)
    assert completion.ttft_ms == pytest.approx(500)
    assert completion.itl_ms == pytest.approx(200)
    assert completion.e2e_latency_ms == pytest.approx(900)
    assert (completion.prompt_tokens, completion.output_tokens) == (2, 3)
    assert "".join(shown) == completion.text


def test_one_token_has_no_time_between(processor: Processor) -> None:
    completion = generate(Script(processor, [40]), processor, prompt(1), max_tokens=1)
    assert completion.itl_ms == 0.0
    assert completion.ttft_ms == completion.e2e_latency_ms


@pytest.mark.parametrize("call", [generate, generate_batch])
def test_max_tokens_must_be_positive(processor: Processor, session: OnnxSession, call: Any) -> None:
    inputs = questions(processor)[0]
    with pytest.raises(UserError, match="max_tokens is 0: expected at least 1"):
        call(session, processor, inputs if call is generate else [inputs], max_tokens=0)


def test_more_tokens_than_the_model_holds_are_refused(processor: Processor, session: OnnxSession) -> None:
    with pytest.raises(UserError, match="the model ends at 4096"):
        generate(session, processor, questions(processor)[0], max_tokens=5000)


def test_speculation_takes_fewer_passes_for_the_same_answer(
    processor: Processor, session: OnnxSession
) -> None:
    text = "ABBA? code of BORA, code of ABBA, code of BORA, code of ABBA, code of"
    inputs = processor([{"role": "user", "content": text}])
    plain, fast = (
        generate(session, processor, inputs, max_tokens=40, sampling=Sampling(0.01), speculate=speculate)
        for speculate in (False, True)
    )
    assert (fast.text, fast.token_ids) == (plain.text, plain.token_ids)
    assert plain.tokens_per_pass == 1.0 <= fast.tokens_per_pass
