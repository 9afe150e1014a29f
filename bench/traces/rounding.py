"""What a checkpoint would be like if its linears were plainly rounded to a candidate's formats.

That bounds the error to be expected of the candidate: methods that look at data do better, damage does worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from engines.checkpoint import Checkpoint
from engines.narrow import to_fp8
from engines.quantized import PARTS
from engines.weights import BLOCK, StoredLinear

TINY = 1e-30


@dataclass(frozen=True)
class Format:
    """How a linear stores its weights: int with bits and columns of a group (None: a whole row), or fp8; and
    whether its inputs are rounded to 8 bits of the same kind."""

    kind: str = "int"
    bits: int = 4
    group_size: int | None = None
    activations: bool = False

    def weight(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows [N, K] of a weight, rounded to nearest."""
        if self.kind != "int":
            return _fp8(rows)
        return _integers(rows, self.bits, self.group_size or rows.shape[1])

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs [T, K], each token with its own scale."""
        if not self.activations:
            return x
        return _integers(x, 8, x.shape[1]) if self.kind == "int" else _fp8(x)


Formats = Mapping[str, Format]  # by the name of the linear, model.language_model.layers.0.mlp.up_proj


def checkpoint_formats(checkpoint: Checkpoint) -> Formats:
    """The formats of a checkpoint's quantised linears."""
    quantization = checkpoint.quantization
    if quantization is None:
        return {}
    first = PARTS[quantization.method][0]
    stored = [name.removesuffix(f".{first}") for name in checkpoint.names() if name.endswith(f".{first}")]
    return {name: Format("int", quantization.bits(name), quantization.group_size) for name in stored}


@contextmanager
def rounded(model: Any, formats: Formats) -> Iterator[None]:
    """While it lasts the linears of a transformers model multiply as those formats would."""
    before = {name: model.get_submodule(name) for name in formats}
    try:
        for name, linear in before.items():
            _replace(model, name, Rounded(linear, formats[name]))
        yield
    finally:
        for name, linear in before.items():
            _replace(model, name, linear)


class Rounded(torch.nn.Module):
    """A StoredLinear whose weight is rounded anew in every product: no second copy is held."""

    def __init__(self, linear: StoredLinear, format: Format) -> None:
        super().__init__()
        self.linear, self.format = linear, format

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stored, bias = self.linear.stored, self.linear.bias
        rows, columns = stored.shape
        flat, step = self.format.inputs(x.reshape(-1, columns)), max(1, BLOCK // columns)
        parts = [
            flat @ self.format.weight(stored[start : start + step].to(flat.dtype)).T
            for start in range(0, rows, step)
        ]
        y = torch.cat(parts, dim=1)
        if bias is not None:
            y = y + bias
        return y.reshape(*x.shape[:-1], rows)


def _replace(model: Any, name: str, linear: torch.nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, linear)


def _integers(x: torch.Tensor, bits: int, group_size: int) -> torch.Tensor:
    groups = x.reshape(len(x), -1, group_size)
    most = 2 ** (bits - 1) - 1
    scales = (groups.abs().amax(-1, keepdim=True) / most).clamp(min=TINY)
    rounded: torch.Tensor = (groups / scales).round() * scales
    return rounded.reshape(x.shape)


def _fp8(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(to_fp8(x.numpy()).dequantize())
