"""Calibration: sets and receipts; hidden states and statistics against transformers' whole model."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.processor import Inputs, Processor
from engines.reference import ReferenceSession
from quantize.calibration import prepare, read_samples, receipt
from quantize.capture import Activations, capture
from quantize.layers import BLOCK, GROUPS, Decoder, Group, Statistics, add_deepstack, load_layer

PACKAGED = Path(__file__).resolve().parent.parent / "quantize" / "calibration.jsonl"


def picture(width: int, height: int, seed: int) -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def messages(*content: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}]


CONVERSATIONS = {
    "text": messages(),
    "other text": messages({"type": "text", "text": "Is it? "}),
    "image": messages({"type": "image", "image": picture(48, 32, 0)}),
    "two images": messages(
        {"type": "image", "image": picture(48, 32, 1)}, {"type": "image", "image": picture(32, 64, 2)}
    ),
    "video": messages(
        {"type": "video", "video": [picture(32, 32, seed) for seed in range(3, 7)], "fps": 2.0},
        {"type": "image", "image": picture(64, 48, 8)},
    ),
}


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def checkpoint(micro_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(micro_checkpoint)


@pytest.fixture(scope="module")
def processor(micro_checkpoint: Path) -> Processor:
    return Processor.load(micro_checkpoint)


@pytest.fixture(scope="module")
def prompts(processor: Processor) -> list[Inputs]:
    return sorted((processor(chat) for chat in CONVERSATIONS.values()), key=lambda p: len(p.input_ids))


@pytest.fixture(scope="module")
def activations(checkpoint: Checkpoint, prompts: list[Inputs]) -> Activations:
    return capture(checkpoint, prompts)


@pytest.fixture(scope="module")
def reference(micro_checkpoint: Path) -> ReferenceSession:
    return ReferenceSession(micro_checkpoint, dtype="float32")


def observed(
    reference: ReferenceSession, prompts: list[Inputs], module: str, take: Callable[[Any, Any], torch.Tensor]
) -> torch.Tensor:
    """What `take` sees of a module's input and output in transformers' own forward pass, prompt by prompt."""
    seen: list[torch.Tensor] = []

    def hook(_: Any, inputs: Any, output: Any) -> None:
        seen.append(take(inputs, output)[0].float())

    handle = reference.model.get_submodule(module).register_forward_hook(hook)
    for prompt in prompts:
        reference.prefill([prompt], capacity=len(prompt.input_ids))
    handle.remove()
    return torch.cat(seen)


def test_hidden_states_after_all_layers_are_transformers(
    checkpoint: Checkpoint, activations: Activations, prompts: list[Inputs], reference: ReferenceSession
) -> None:
    decoder, hidden = Decoder(checkpoint), activations.hidden
    for index in range(checkpoint.config.text.num_hidden_layers):
        hidden = decoder.run(load_layer(checkpoint, index), activations.entering(hidden))
        hidden = add_deepstack(hidden, activations, index)
    expected = observed(reference, prompts, "model.language_model.norm", lambda inputs, _: inputs[0])
    assert (hidden - expected).norm() < 1e-5 * expected.norm()


def test_sequences_of_one_length_run_together_as_they_would_alone(
    checkpoint: Checkpoint, processor: Processor
) -> None:
    chats = [messages({"type": "image", "image": picture(48, 32, seed)}) for seed in range(3)]
    decoder, tensors = Decoder(checkpoint), load_layer(checkpoint, 0)
    together = capture(checkpoint, [processor(chat) for chat in chats])
    assert [count for _, count in together.batches()] == [3]
    alone = [capture(checkpoint, [processor(chat)]) for chat in chats]
    expected = torch.cat([decoder.run(tensors, one) for one in alone])
    torch.testing.assert_close(decoder.run(tensors, together), expected, rtol=1e-5, atol=1e-5)


def test_second_moments_of_more_columns_than_a_block() -> None:
    X = torch.randn(300, 2 * BLOCK + 70, generator=torch.Generator().manual_seed(0))
    found = Statistics(X.shape[1], len(X))
    for rows in X.split(128):
        found.add(rows)
    torch.testing.assert_close(found.hessian, X.T @ X / len(X), rtol=1e-4, atol=1e-5)
    assert (found.hessian == found.hessian.T).all()
    torch.testing.assert_close(found.magnitude, X.abs().mean(0))


def test_a_group_sees_what_those_before_it_were_replaced_by(
    checkpoint: Checkpoint, activations: Activations
) -> None:
    seen: dict[str, Statistics] = {}

    def without_values(group: Group, found: Statistics) -> dict[str, torch.Tensor]:
        seen[group.linears[0]] = found
        names = [f"{name}.weight" for name in group.linears if name in ("self_attn.v_proj", "mlp.up_proj")]
        return {name: torch.zeros_like(tensors[name], dtype=torch.float32) for name in names}

    tensors = load_layer(checkpoint, 0)
    hidden = Decoder(checkpoint).run(tensors, activations, without_values)
    assert seen["self_attn.q_proj"].magnitude.min() > 0
    assert seen["self_attn.o_proj"].magnitude.max() == seen["mlp.down_proj"].magnitude.max() == 0
    assert (hidden == activations.hidden).all()


def test_every_token_is_in_one_batch(activations: Activations) -> None:
    rows = [slice_ for slice_, _ in activations.batches()]
    assert rows[0].start == 0
    assert rows[-1].stop == len(activations.hidden) == sum(activations.lengths)
    assert all(before.stop == after.start for before, after in itertools.pairwise(rows))


@pytest.mark.parametrize("index", [0, 2])
def test_statistics_are_of_the_inputs_transformers_feeds_the_linears(
    checkpoint: Checkpoint,
    activations: Activations,
    prompts: list[Inputs],
    reference: ReferenceSession,
    index: int,
) -> None:
    decoder, prefix, hidden = Decoder(checkpoint), f"model.language_model.layers.{index}", activations.hidden
    for before in range(index):
        hidden = decoder.run(load_layer(checkpoint, before), activations.entering(hidden))
        hidden = add_deepstack(hidden, activations, before)
    statistics: list[Statistics] = []

    def keep(group: Group, found: Statistics) -> dict[str, torch.Tensor]:
        statistics.append(found)
        return {}

    decoder.run(load_layer(checkpoint, index), activations.entering(hidden), keep)
    streams = {
        "self_attn.o_proj": observed(
            reference, prompts, f"{prefix}.post_attention_layernorm", lambda i, _: i[0]
        ),
        "mlp.down_proj": observed(reference, prompts, prefix, lambda _, output: output),
    }
    for group, found in zip(GROUPS, statistics, strict=True):
        for name in group.linears:
            x = observed(reference, prompts, f"{prefix}.{name}", lambda inputs, _: inputs[0])
            if name in streams:  # counted relative to the residual stream it writes to
                x = x / streams[name].square().mean(-1, keepdim=True).sqrt()
            torch.testing.assert_close(found.hessian, x.T @ x / len(x), rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(found.magnitude, x.abs().mean(0), rtol=1e-3, atol=1e-4)


def test_answers_follow_their_prompts(processor: Processor, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "set.jsonl", {"messages": CONVERSATIONS["text"], "answer": "KT72"})
    (prompt,) = prepare(read_samples(path), processor)
    without = processor(CONVERSATIONS["text"])
    length = len(without.input_ids)
    assert (prompt.input_ids[:length] == without.input_ids).all()
    assert processor.decode(prompt.input_ids[length:]) == "KT72"
    assert prompt.positions[:, length].tolist() == [without.next_position] * 3


def test_receipt_says_what_was_seen(checkpoint: Checkpoint, processor: Processor, tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "set.jsonl",
        {"messages": [{"role": "user", "content": "Who?"}], "answer": "I", "id": "first"},
        {"messages": [{"role": "user", "content": "What?"}]},
    )
    samples = read_samples(path)
    prompts = [processor(CONVERSATIONS["two images"]), processor(CONVERSATIONS["video"])]
    seen = receipt(path, samples, prompts, visual_tokens=17)
    assert seen == {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "samples": 2,
        "images": 3,
        "videos": 1,
        "tokens": sum(len(prompt.input_ids) for prompt in prompts),
        "visual_tokens": 17,
        "items": ["first", hashlib.sha256(path.read_bytes().splitlines()[1]).hexdigest()],
    }


def test_the_packaged_set_has_text_images_and_videos(processor: Processor) -> None:
    samples = read_samples(PACKAGED)
    kinds = {media.kind for prompt in prepare(samples, processor) for media in prompt.media}
    assert kinds == {"image", "video"}
    assert len(samples) >= 64
    assert len({sample.id for sample in samples}) == len(samples)
    assert any(not prompt.media for prompt in prepare(samples, processor))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no samples"),
        ("{", "set.jsonl:1: not JSON"),
        ("[]", "set.jsonl:1: expected an object with a list of 'messages'"),
        ('{"messages": "hello"}', "set.jsonl:1: expected an object with a list of 'messages'"),
        ('{"messages": [], "answer": 3}', "set.jsonl:1: 'id' and 'answer' have to be strings"),
    ],
)
def test_broken_sets_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "set.jsonl").write_text(line)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        read_samples(tmp_path / "set.jsonl")


def test_a_missing_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the calibration set"):
        read_samples(tmp_path / "none.jsonl")


def test_a_sample_that_cannot_be_an_input_is_named(processor: Processor, tmp_path: Path) -> None:
    chat = messages({"type": "image", "image": str(tmp_path / "none.png")})
    path = write_lines(tmp_path / "set.jsonl", {"messages": chat, "id": "broken-one"})
    with pytest.raises(UserError, match="calibration sample broken-one: "):
        prepare(read_samples(path), processor)
