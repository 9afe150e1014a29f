"""The trained micro checkpoint shows quantisation damage: coarse INT4 loses answers, INT8 does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import binomtest

from bench.micro.tasks import TASKS, generate
from bench.micro.tokenizer import MicroTokens

torch = pytest.importorskip("torch")

ITEMS, SEED = 1000, 0


@pytest.fixture(scope="module")
def right(micro_checkpoint: Path) -> dict[str, list[bool]]:
    """Whether each of 1,000 held-out items is answered: as trained and with rounded decoder linears."""
    from tokenizers import Tokenizer
    from transformers import Qwen3VLForConditionalGeneration

    from bench.micro.evaluate import score

    items = generate("test", ITEMS, SEED)
    tokens = MicroTokens(Tokenizer.from_file(str(micro_checkpoint / "tokenizer.json")))
    results = {}
    roundings: dict[str, Callable | None] = {
        "trained": None,
        "int4 g128": lambda w: _round(w, bits=4, group=128),
        "int8": lambda w: _round(w, bits=8, group=w.shape[1]),
    }
    for name, rounding in roundings.items():
        model = Qwen3VLForConditionalGeneration.from_pretrained(micro_checkpoint, dtype=torch.float32).eval()
        if rounding:
            for layer in model.model.language_model.layers.modules():
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.data = rounding(layer.weight.data)
        results[name] = score(model, tokens, items)
    results["task"] = [item.task for item in items]
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


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_learned(right: dict, task: str) -> None:
    hits = [ok for ok, name in zip(right["trained"], right["task"], strict=True) if name == task]
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
