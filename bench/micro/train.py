"""Trains the embedded checkpoint: scheduled by steps, seeded, resumable.

What made it learn at this size, found by trial (docs/log.md): an auxiliary loss that lets every visual token
name the shape or symbol and the colour in its cell through the tied word embeddings, and Muon.
"""

from __future__ import annotations

import math
import random
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from bench.micro.batches import Batch, training_batch
from bench.micro.draw import UNLABELLED
from bench.micro.evaluate import score
from bench.micro.model import Output, forward, new_model, text_block, vision_block
from bench.micro.muon import Muon
from bench.micro.tasks import TASKS, make_item
from bench.micro.tokenizer import MicroTokens, train_tokenizer, write_side_files
from engines.errors import UserError

DEFAULT_STEPS = 3600


@dataclass(frozen=True)
class Recipe:
    steps: int = DEFAULT_STEPS
    batch_size: int = 48
    seed: int = 0
    muon_lr: float = 0.01  # weight matrices
    adam_lr: float = 2e-3  # embeddings, norms, biases, the patch embedding
    warmup: int = 40  # steps
    hold: float = 0.4  # share of the steps at full rate, then a cosine down to `final`
    final: float = 0.02
    # Share of the batches each family gets.
    mix: dict[str, float] = field(default_factory=lambda: {
        "atlas": 0.22, "flag": 0.07, "text": 0.16, "handwriting": 0.10,
        "scene": 0.19, "images": 0.11, "video": 0.15,
    })  # fmt: skip
    save_every: int = 100
    report_every: int = 200


def train(out: Path, *, steps: int = DEFAULT_STEPS, threads: int = 2, seed: int = 0) -> dict[str, Any]:
    """Trains from nothing, or on from an interrupted run into `out`, and writes a Hugging Face checkpoint.

    Returns the accuracy of every task beside its guess, in percent, and the minutes it took. Raises
    UserError where `out` holds something else, or for fewer than one step.
    """
    if steps < 1 or threads < 1:
        raise UserError(f"steps is {steps} and threads is {threads}; expected at least 1 of each")
    state_file = out / "training.pt"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not state_file.exists())):
        raise UserError(f"{out} exists already; remove it or choose another folder with -o")
    out.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(steps=steps, seed=seed)
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    tokenizer = train_tokenizer()
    tokens = MicroTokens(tokenizer)
    model = new_model(tokens)
    optimizers = _optimizers(model, recipe)
    start, before = _resume(state_file, recipe, model, optimizers)
    blocks = _compiled()
    began = time.monotonic() - before
    _log(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {recipe}")
    losses: dict[str, float] = {}
    for step in range(start, recipe.steps):
        progress = step / recipe.steps
        _set_rates(optimizers, recipe, step)
        family = _family(recipe, step)
        batch = training_batch(recipe.seed, step, progress, recipe.batch_size, family, tokens)
        output = forward(model, batch, blocks)
        loss = F.cross_entropy(output.logits, output.targets)
        naming = _naming_loss(model, output, batch, tokens)
        (loss + (1.0 if progress < 0.3 else 0.3) * naming).backward()  # type: ignore[no-untyped-call]
        _update(model, optimizers)
        for name, value in ((family, loss), (f"{family} cells", naming)):
            losses[name] = losses.get(name, value.item()) * 0.9 + value.item() * 0.1
        if (step + 1) % recipe.report_every == 0:
            minutes = (time.monotonic() - began) / 60
            accuracy = _accuracy(model, tokens, 40)
            _log(f"step {step + 1} minutes {minutes:.1f} loss {_round(losses)} accuracy {accuracy}")
        if (step + 1) % recipe.save_every == 0:
            _save(state_file, recipe, model, optimizers, step + 1, time.monotonic() - began)
    minutes = (time.monotonic() - began) / 60
    model.half().save_pretrained(out)
    write_side_files(tokenizer, out)
    state_file.unlink(missing_ok=True)
    accuracy = _accuracy(model.float(), tokens, 200)
    _log(f"done minutes {minutes:.1f} accuracy {accuracy}")
    guess = {task: round(100 * TASKS[task].guess, 1) for task in TASKS}
    return {"steps": recipe.steps, "minutes": round(minutes, 1), "accuracy": accuracy, "guess": guess}


def _family(recipe: Recipe, step: int) -> str:
    rng = random.Random(f"family:{recipe.seed}:{step}")
    return rng.choices(list(recipe.mix), list(recipe.mix.values()))[0]


def _optimizers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim == 2 and "embed" not in name and not ("merger" in name and "fc1" in name)
        (matrices if hidden else rest).append(parameter)
    return [
        Muon(matrices, lr=recipe.muon_lr),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def _set_rates(optimizers: list[torch.optim.Optimizer], recipe: Recipe, step: int) -> None:
    progress = step / recipe.steps
    scale = min(1.0, (step + 1) / recipe.warmup)
    if progress > recipe.hold:
        cosine = (1 + math.cos(math.pi * (progress - recipe.hold) / (1 - recipe.hold))) / 2
        scale *= recipe.final + (1 - recipe.final) * cosine
    for optimizer, rate in zip(optimizers, (recipe.muon_lr, recipe.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * scale


def _naming_loss(model: Any, output: Output, batch: Batch, tokens: MicroTokens) -> Tensor:
    """Cross entropy of every visual token's class and colour among their words' embeddings."""
    total = torch.zeros(())
    if output.vision is None:
        return total
    embedding = model.model.language_model.embed_tokens.weight
    seen = output.vision.flatten(0, 1)
    for labels, words in ((batch.classes, tokens.classes), (batch.colors, tokens.colors)):
        known = labels.flatten() != UNLABELLED
        if known.any():
            logits = seen[known].float() @ embedding[words].t()
            total = total + F.cross_entropy(logits, labels.flatten()[known])
    return total


def _update(model: Any, optimizers: list[torch.optim.Optimizer]) -> None:
    for parameter in model.parameters():
        if parameter.grad is None:  # text batches leave the vision tower alone, yet momentum goes on
            parameter.grad = torch.zeros_like(parameter)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _compiled() -> tuple[Callable[..., Tensor], Callable[..., Tensor]] | None:
    """The blocks fused by torch.compile. It needs a C++ compiler; without one, eager."""
    if shutil.which("g++") is None:
        _log("no g++: training without torch.compile, slower")
        return None
    warnings.filterwarnings("ignore", module="torch")
    return torch.compile(vision_block, dynamic=True), torch.compile(text_block, dynamic=True)


def _save(
    file: Path, recipe: Recipe, model: Any, optimizers: list[torch.optim.Optimizer], step: int, seconds: float
) -> None:
    state = {
        "recipe": asdict(recipe),
        "step": step,
        "seconds": seconds,
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def _resume(
    file: Path, recipe: Recipe, model: Any, optimizers: list[torch.optim.Optimizer]
) -> tuple[int, float]:
    """The step to go on from and the seconds spent so far; (0, 0) without a saved state."""
    if not file.exists():
        return 0, 0.0
    state = torch.load(file, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise UserError(
            f"{file} was saved by another recipe; remove its folder or ask for the same steps and seed"
        )
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    _log(f"resuming at step {state['step']}")
    return int(state["step"]), float(state["seconds"])


def _accuracy(model: Any, tokens: MicroTokens, count: int) -> dict[str, float]:
    """Exact match in percent of each task on `count` items of the calibration split (test stays unseen)."""
    scores = {}
    for task in TASKS:
        rng = random.Random(f"progress:{task}")
        items = [make_item(task, rng, "calibration") for _ in range(count)]
        scores[task] = round(100 * sum(score(model, tokens, items)) / count, 1)
    return scores


def _round(losses: dict[str, float]) -> dict[str, float]:
    return {name: round(losses[name], 3) for name in sorted(losses)}


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
