"""The trained micro checkpoint shows quantisation damage: coarse INT4 loses answers, INT8 does not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binomtest

from bench.micro.tasks import TASKS, generate, make_item
from bench.micro.tokenizer import MicroTokens

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS, SEED = 1000, 0


@pytest.fixture(scope="module")
def tokens(micro_checkpoint: Path) -> MicroTokens:
    from tokenizers import Tokenizer

    return MicroTokens(Tokenizer.from_file(str(micro_checkpoint / "tokenizer.json")))


def _load(checkpoint: Path):
    from transformers import Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def right(micro_checkpoint: Path, tokens: MicroTokens) -> dict[str, list[bool]]:
    """Whether each of 1,000 held-out items is answered: as trained and with rounded decoder linears."""
    from bench.micro.evaluate import score

    items = generate("test", ITEMS, SEED)
    results = {}
    roundings: dict[str, Callable | None] = {
        "trained": None,
        "int4 g128": lambda w: _round(w, bits=4, group=128),
        "int8": lambda w: _round(w, bits=8, group=w.shape[1]),
    }
    for name, rounding in roundings.items():
        model = _load(micro_checkpoint)
        if rounding:
            for layer in model.model.language_model.layers.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.data = rounding(layer.weight.data)
        results[name] = score(model, tokens, items)
    return results


def _round(weight, bits: int, group: int):
    """Symmetric round-to-nearest, one scale per `group` inputs of a row."""
    w = weight.reshape(len(weight), -1, group)
    top = 2 ** (bits - 1)
    scale = w.abs().amax(-1, keepdim=True) / (top - 1)
    return ((w / scale).round().clamp(-top, top - 1) * scale).reshape(weight.shape)


def _mcnemar(before: list[bool], after: list[bool]) -> tuple[int, int, float]:
    """Answers lost, answers won, exact two-sided p."""
    lost = sum(b and not a for b, a in zip(before, after, strict=True))
    won = sum(a and not b for b, a in zip(before, after, strict=True))
    return lost, won, binomtest(lost, lost + won).pvalue if lost + won else 1.0


@pytest.fixture(scope="module")
def model(micro_checkpoint: Path):
    return _load(micro_checkpoint)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_learned(model, tokens: MicroTokens, task: str) -> None:
    from bench.micro.evaluate import score

    rng = random.Random(f"learned:{task}")
    hits = score(model, tokens, [make_item(task, rng, "test") for _ in range(100)])
    accuracy = sum(hits) / len(hits)
    assert accuracy >= 0.8 or accuracy >= TASKS[task].guess + 0.4


def test_coarse_int4_loses_answers(right: dict) -> None:
    lost, won, p = _mcnemar(right["trained"], right["int4 g128"])
    assert lost > won
    assert p < 0.01


def test_int8_loses_none(right: dict) -> None:
    lost, won, p = _mcnemar(right["trained"], right["int8"])
    assert p > 0.05
    assert abs(lost - won) <= 3
