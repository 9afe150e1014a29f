"""What the 4 bits of each layer cost, and which layers to keep in 8 bits so that all together cost no more.

The cost is KL(16-bit || quantised) of the next token, in nats, at the ends of some of the calibration
samples: where the model answers. All layers have one size, so the fewest in 8 bits make the smallest
checkpoint.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from engines.checkpoint import EMBEDDING, HEAD, Checkpoint
from engines.errors import UserError
from engines.processor import Inputs
from quantize.capture import Activations, capture, to_torch
from quantize.layers import Decoder, Tensors, add_deepstack, load_layer

TOKENS = 2048  # about so many are looked at
TAIL = 5  # of each sample
ROWS = 8192  # of the head at once

Weights = Callable[[int], Tensors]


@dataclass(frozen=True)
class Mixture:
    """sensitivity: the cost of each layer when it alone is in 4 bits; eight_bit: the layers kept in 8; kl:
    what all layers cost together."""

    sensitivity: tuple[float, ...]
    eight_bit: tuple[int, ...]
    kl: float


def sample(prompts: Sequence[Inputs]) -> list[Inputs]:
    """Prompts evenly spread over all of them."""
    total = sum(len(prompt.input_ids) for prompt in prompts)
    return list(prompts[:: -(-total // TOKENS)])


def mixture(
    source: Checkpoint,
    prompts: Sequence[Inputs],
    four: Weights,
    eight: Weights,
    limit: float | None,
    progress: Callable[[int, int], None],
) -> Mixture:
    """Measures every layer and, given a limit, keeps the worst in 8 bits: as many as it takes.

    four, eight: a layer's tensors with its linears rounded. Raises UserError when 8 bits everywhere will not
    do.
    """
    costs = Costs(source, capture(source, prompts))
    layers = range(costs.layers)
    found = []
    for index in layers:
        found.append(costs.of(lambda i: four(i) if i == index else costs.original(i), index))  # noqa: B023
        progress(index + 1, costs.layers)
    worst = sorted(layers, key=lambda index: -found[index])

    def together(count: int) -> float:
        kept = worst[:count]
        return costs.of(lambda i: eight(i) if i in kept else four(i))

    count = 0
    if limit is not None:
        count = bisect_left(range(costs.layers), True, key=lambda n: together(n) <= limit)
    kl = together(count)
    if limit is not None and kl > limit:
        raise UserError(f"all layers in 8 bits are at a KL of {kl:.3g}, above {limit:g}: raise the limit")
    return Mixture(tuple(found), tuple(sorted(worst[:count])), kl)


class Costs:
    """The 16-bit model's hidden states before every layer, and its distributions, on some prompts."""

    def __init__(self, source: Checkpoint, activations: Activations) -> None:
        self._source, self._decoder = source, Decoder(source)
        self.layers = source.config.text.num_hidden_layers
        ends = torch.tensor(activations.lengths).cumsum(0)
        self._rows = (ends[:, None] - 1 - torch.arange(TAIL)).flatten()
        self._entering = [activations]
        for hidden in self._run(self.original, 0):
            self._entering.append(activations.entering(hidden))
        self._baseline = self._log_probabilities(self._entering.pop().hidden)

    def original(self, index: int) -> Tensors:
        """A layer as it is in the checkpoint."""
        return load_layer(self._source, index)

    def of(self, weights: Weights, start: int = 0) -> float:
        """Mean KL of the model with other weights from layer `start` on."""
        *_, hidden = self._run(weights, start)
        found = self._log_probabilities(hidden)
        return float((self._baseline.exp() * (self._baseline - found)).sum(-1).mean())

    def _run(self, weights: Weights, start: int) -> Iterator[torch.Tensor]:
        activations = self._entering[start]
        for index in range(start, self.layers):
            hidden = add_deepstack(self._decoder.run(weights(index), activations), activations, index)
            activations = activations.entering(hidden)
            yield hidden

    def _log_probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        config, source = self._source.config, self._source
        rows = hidden[self._rows]
        rows = rows * (rows.square().mean(-1, keepdim=True) + config.text.rms_norm_eps).rsqrt()
        rows = rows * to_torch(source.tensor("model.language_model.norm.weight")).float()
        head = source.tensor(EMBEDDING if config.tie_word_embeddings else HEAD)
        parts = [rows @ to_torch(head[start : start + ROWS]).float().T for start in range(0, len(head), ROWS)]
        return torch.cat(parts, dim=1).log_softmax(-1)
