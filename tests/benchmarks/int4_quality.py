"""What 4 bits cost the embedded checkpoint: RTN, GPTQ and AWQ at one size, and what was tried beside them.

    .venv/bin/python -m tests.benchmarks.int4_quality [--items 4900] [--groups 32 128] [--tried]

Held-out items by one teacher-forced forward, paired with the 16-bit model's: exact match, how much of the
baseline's that is, and KL(baseline || variant) of the answers' tokens in nats. 4,900 items ask every fact
that may be asked. --tried adds what `quantize` does not do: asymmetric zero points, and for each linear
the zero points and scales of least KL on the calibration set.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from bench.micro.evaluate import batches, exact
from bench.micro.model import forward
from bench.micro.tasks import generate
from bench.micro.tokenizer import MicroTokens
from bench.statistics import Interval, tango_interval
from engines.checkpoint import Checkpoint
from engines.processor import Processor
from quantize.__main__ import CALIBRATION
from quantize.calibration import prepare, read_samples
from quantize.capture import Activations, capture
from quantize.gptq import compensated
from quantize.layers import (
    Decoder,
    Group,
    Statistics,
    Tensors,
    add_deepstack,
    layer_prefix,
    load_layer,
)
from quantize.methods import Quantized
from quantize.scales import SHRINKS, grouped, nearest, search
from quantize.scales import exact as representable
from quantize.sensitivity import Costs, sample

CHECKPOINT = Path(__file__).resolve().parents[2] / "bench" / "micro" / "checkpoint"
DAMPING = 0.01
FACTORS = (1.0, 0.9, 0.8)  # of a linear's scales, tried by KL

# A layer by its index, its tensors and what enters it -> its tensors rounded.
Rounding = Callable[[int, Tensors, Activations], Tensors]


@dataclass(frozen=True)
class Quality:
    """right: of each item, whether it is answered; recovered: share of the baseline's score, with its 90 %
    interval (Tango's of the paired difference)."""

    right: torch.Tensor
    accuracy: float
    recovered: Interval
    kl: float


class Questions:
    """Items, and what the 16-bit model says to them."""

    def __init__(self, items: int, seed: int = 0) -> None:
        tokens = MicroTokens(Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")))
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()
        self.batches = [batch for _, batch in batches(tokens, generate("test", items, seed))]
        self.right, self.likely = self._asked()

    def put_to(self, changed: Tensors) -> Quality:
        """The model with some other tensors, by their names in the checkpoint."""
        own = dict(self.model.named_parameters())
        before = {name: own[name].data for name in changed}
        try:
            for name, tensor in changed.items():
                own[name].data = tensor.float()
            right, likely = self._asked()
        finally:
            for name, tensor in before.items():
                own[name].data = tensor
        n, base = len(right), float(self.right.double().mean())
        won, lost = int((right & ~self.right).sum()), int((self.right & ~right).sum())
        found = tango_interval(won, lost, n, 0.9)
        recovered = Interval(*(1 + x / base for x in (found.estimate, found.low, found.high)))
        kl = float((self.likely.exp() * (self.likely - likely)).sum(-1).mean())
        return Quality(right, float(right.double().mean()), recovered, kl)

    @torch.no_grad()
    def _asked(self) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = [forward(self.model, batch) for batch in self.batches]
        likely = torch.cat([output.logits.log_softmax(-1) for output in outputs])
        return torch.cat([exact(output) for output in outputs]), likely


class Calibrated:
    """The checkpoint with the activations of the packaged calibration set."""

    def __init__(self) -> None:
        self.source = Checkpoint.open(CHECKPOINT)
        prompts = prepare(read_samples(CALIBRATION), Processor.load(CHECKPOINT))
        self.activations = capture(self.source, prompts)
        self.costs = Costs(self.source, capture(self.source, sample(prompts)))

    def rounded(self, rounding: Rounding) -> Tensors:
        """Every layer of the decoder, each on what those before it now pass on."""
        decoder, activations, found = Decoder(self.source), self.activations, {}
        for index in range(self.source.config.text.num_hidden_layers):
            tensors = load_layer(self.source, index)
            layer = rounding(index, tensors, activations)
            hidden = decoder.run(tensors | layer, activations)
            activations = activations.entering(add_deepstack(hidden, activations, index))
            found |= {layer_prefix(index) + name: tensor for name, tensor in layer.items()}
        return found


def as_quantize_does(calibrated: Calibrated, method: str, group_size: int) -> Rounding:
    """RTN, GPTQ or AWQ."""

    def rounding(index: int, tensors: Tensors, activations: Activations) -> Tensors:
        layer = Quantized(tensors, method, group_size, DAMPING)
        Decoder(calibrated.source).run(tensors, activations, layer.replace)
        weights = {f"{name}.weight": torch.from_numpy(x.dequantize()) for name, x in layer.linears.items()}
        return weights | layer.changed

    return rounding


@dataclass(frozen=True)
class Grid:
    """Where the codes of W lie: W is about code * scale + offset, the offset a whole number of scales."""

    scales: torch.Tensor  # [N, K / group_size]
    offsets: torch.Tensor  # the same

    def gptq(self, W: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        """An offset that is taken off first changes nothing in how errors are passed on."""
        offsets = _spread(self.offsets, W)
        codes = compensated(W - offsets, hessian, self.scales, damping=DAMPING)
        return codes * _spread(self.scales, W) + offsets

    def rtn(self, W: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        offsets, scales = _spread(self.offsets, W), _spread(self.scales, W)
        return nearest(W - offsets, scales) * scales + offsets


def _spread(x: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
    """What groups have, for every column of W."""
    return x.repeat_interleave(W.shape[1] // x.shape[1], dim=1)


def symmetric(W: torch.Tensor, diagonal: torch.Tensor, group_size: int, factor: float = 1.0) -> Grid:
    """GPTQ's own, times a factor."""
    scales = search(W, group_size, diagonal)
    return Grid(representable(scales * factor), torch.zeros_like(scales))


def asymmetric(W: torch.Tensor, diagonal: torch.Tensor, group_size: int, factor: float = 1.0) -> Grid:
    """From the lowest to the highest weight of a group, the range clipped at both ends as `search` does."""
    groups, weights = grouped(W, group_size), diagonal.reshape(-1, group_size)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    best, lowest = torch.ones_like(low), torch.full_like(low, torch.inf)
    for shrink in SHRINKS:
        grid = _between(low * shrink, high * shrink)
        scales, offsets = grid.scales[..., None], grid.offsets[..., None]
        rounded = nearest(groups - offsets, scales) * scales + offsets
        error = ((rounded - groups).square() * weights).sum(-1)
        best = torch.where(error < lowest, shrink, best)
        lowest = torch.minimum(error, lowest)
    return _between(low * best * factor, high * best * factor)


def _between(low: torch.Tensor, high: torch.Tensor) -> Grid:
    scales = representable((high - low) / 15)
    zero_points = (-low / scales).round().clamp(0, 15)
    return Grid(scales, (8 - zero_points) * scales)


def by_grid(calibrated: Calibrated, grid: Callable[..., Grid], group_size: int, *, gptq: bool) -> Rounding:
    """Every linear on one kind of grid, rounded by GPTQ or to nearest."""

    def rounding(index: int, tensors: Tensors, activations: Activations) -> Tensors:
        layer: Tensors = {}

        def replace(group: Group, found: Statistics) -> Tensors:
            hessian = found.hessian
            for name in group.linears:
                W = tensors[f"{name}.weight"].float()
                chosen = grid(W, hessian.diagonal(), group_size)
                layer[f"{name}.weight"] = (chosen.gptq if gptq else chosen.rtn)(W, hessian)
            return layer

        Decoder(calibrated.source).run(tensors, activations, replace)
        return layer

    return rounding


def by_kl(calibrated: Calibrated, grids: Sequence[Callable[..., Grid]], group_size: int) -> Rounding:
    """GPTQ on the grid of each linear, and the factor of its scales, at which the whole model's KL is least;
    one linear after the other, layers to come in 16 bits."""
    finished: list[Tensors] = []

    def rounding(index: int, tensors: Tensors, activations: Activations) -> Tensors:
        hessians: dict[str, torch.Tensor] = {}
        layer: Tensors = {}

        def replace(group: Group, found: Statistics) -> Tensors:
            for name in group.linears:
                W, hessians[name] = tensors[f"{name}.weight"].float(), found.hessian
                layer[f"{name}.weight"] = symmetric(W, found.hessian.diagonal(), group_size).gptq(
                    W, found.hessian
                )
            return layer

        def kl(name: str, candidate: torch.Tensor) -> float:
            layers = [*finished, tensors | layer | {f"{name}.weight": candidate}]
            costs = calibrated.costs
            return costs.of(lambda i: layers[i] if i < len(layers) else costs.original(i))

        Decoder(calibrated.source).run(tensors, activations, replace)
        for name, hessian in hessians.items():
            W = tensors[f"{name}.weight"].float()
            tried = [
                grid(W, hessian.diagonal(), group_size, f).gptq(W, hessian)
                for grid, f in product(grids, FACTORS)
            ]
            layer[f"{name}.weight"] = min(tried, key=partial(kl, name))
        finished.append(tensors | layer)
        return layer

    return rounding


def methods(calibrated: Calibrated, group_size: int, tried: bool) -> Iterator[tuple[str, float, Rounding]]:
    """Name, bits a weight, rounding."""
    bits = 4 + 16 / group_size
    for method in ("rtn", "gptq", "awq"):
        yield method.upper(), bits, as_quantize_does(calibrated, method, group_size)
    if tried:
        zero_point = 4 / group_size
        clipped = by_grid(calibrated, symmetric, group_size, gptq=False)
        yield "RTN, clipped by activations", bits, clipped
        for name, gptq in (("RTN", False), ("GPTQ", True)):
            rounding = by_grid(calibrated, asymmetric, group_size, gptq=gptq)
            yield f"{name}, clipped, zero points", bits + zero_point, rounding
        yield "GPTQ, scales by KL", bits, by_kl(calibrated, [symmetric], group_size)
        both = by_kl(calibrated, [symmetric, asymmetric], group_size)
        yield "GPTQ, zero points and scales by KL", bits + zero_point, both


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--items", type=int, default=4900)
    options.add_argument("--groups", type=int, nargs="+", default=[32, 128])
    options.add_argument("--tried", action="store_true")
    asked = options.parse_args()
    torch.set_num_threads(1)
    questions, calibrated = Questions(asked.items), Calibrated()
    base = 100 * float(questions.right.double().mean())
    print(f"16 bits: {base:.2f} % of {asked.items} items\n")
    heads = ("groups", "method", "bits a weight", "accuracy %", "of the baseline, % (90 % interval)", "KL")
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for group_size in asked.groups:
        for name, bits, rounding in methods(calibrated, group_size, asked.tried):
            found = questions.put_to(calibrated.rounded(rounding))
            share = found.recovered
            recovered = f"{100 * share.estimate:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"
            cells = (
                group_size,
                name,
                f"{bits:.2f}",
                f"{100 * found.accuracy:.2f}",
                recovered,
                f"{found.kl:.4f}",
            )
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
