"""A checkpoint's weights under transformers' modules: mapped as stored, widened only to be multiplied.

A CPU without 16-bit arithmetic computes in float32, but the model need not lie in memory as float32: a block
of rows at a time is widened into the cache. float32 holds the stored types exactly, so the products are those
of a model loaded in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any

import ml_dtypes
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from engines.checkpoint import Checkpoint
from engines.int4 import ZERO_POINT, Int4
from engines.int8 import ZERO_POINT as INT8_ZERO
from engines.int8 import Int8

BLOCK = 1 << 20  # weights widened at once: 4 MB in float32, which a last-level cache holds


class StoredLinear(nn.Module):
    """y [..., N] = x [..., K] W^T + b, with W [N, K] as stored, computed in x's type."""

    def __init__(self, weight: Tensor | Int4 | Int8, bias: Tensor | None) -> None:
        super().__init__()
        # Plain attributes: a module's parameters decide in which type transformers computes.
        self.stored: Tensor | Codes = Codes(weight) if isinstance(weight, Int4 | Int8) else weight
        self.bias = bias

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredLinear:
        """What moves a module to a device, for what are no parameters of it."""
        self.stored = self.stored.map(function) if isinstance(self.stored, Codes) else function(self.stored)
        self.bias = None if self.bias is None else function(self.bias)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.stored, Tensor) and self.stored.dtype == x.dtype:
            return F.linear(x, self.stored, self.bias)
        rows, columns = self.stored.shape
        flat = x.reshape(-1, columns)
        y = flat.new_empty(len(flat), rows)
        step = max(1, BLOCK // columns)
        for start in range(0, rows, step):
            torch.mm(flat, self.stored[start : start + step].to(x.dtype).t(), out=y[:, start : start + step])
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], rows)


class Codes:
    """A 4- or 8-bit weight that gives slices of rows as float32; a byte to a code."""

    def __init__(self, weight: Int4 | Int8) -> None:
        self.shape = weight.shape
        zero = np.uint8(ZERO_POINT if isinstance(weight, Int4) else INT8_ZERO)
        self.codes = torch.from_numpy((weight.codes - zero).view(np.int8))  # around the byte: -128 is 128
        self.scales = torch.from_numpy(weight.scales.astype(np.float32))[..., None]

    def map(self, function: Callable[[Tensor], Tensor]) -> Codes:
        """Both tensors passed through `function`."""
        self.codes, self.scales = function(self.codes), function(self.scales)
        return self

    def __getitem__(self, rows: slice) -> Tensor:
        scales = self.scales[rows]
        codes = self.codes[rows].float()
        codes.view(*scales.shape[:2], -1).mul_(scales)
        return codes


class StoredEmbedding(nn.Module):
    """Rows [..., H] of a stored table for token ids [...], in the type given."""

    def __init__(self, table: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self.dtype = table, dtype

    def _apply(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredEmbedding:
        self.table = function(self.table)
        return self

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.table).to(self.dtype)


def assign(module: Any, checkpoint: Checkpoint, dtype: torch.dtype, prefix: str = "") -> None:
    """Gives a module that was made on the meta device the tensors below `prefix`, to compute in `dtype`.

    Linears, the token embedding and the head keep what is stored; all else is small and converted.
    """
    for name, child in list(module.named_modules()):
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(child, nn.Linear):
            bias = None
            if child.bias is not None:
                bias = to_torch(checkpoint.tensor(f"{prefix}{name}.bias")).to(dtype)
            weight = checkpoint.weight(_stored_name(checkpoint, prefix + name))
            stored = weight if isinstance(weight, Int4 | Int8) else to_torch(weight)
            setattr(owner, name.rpartition(".")[2], StoredLinear(stored, bias))
        elif name.endswith("embed_tokens"):
            table = to_torch(checkpoint.tensor(f"{prefix}{name}.weight"))
            setattr(owner, name.rpartition(".")[2], StoredEmbedding(table, dtype))
        elif "rotary" in name.rpartition(".")[2]:
            # Frequencies are computed, not stored, and a module made on the meta device has none.
            setattr(owner, name.rpartition(".")[2], type(child)(child.config))
    small = {
        name: to_torch(checkpoint.tensor(prefix + name)).to(dtype) for name, _ in module.named_parameters()
    }
    module.load_state_dict(small, assign=True)
    module.requires_grad_(False).eval()
    empty = [name for name, t in chain(module.named_parameters(), module.named_buffers()) if t.is_meta]
    if empty:
        raise NotImplementedError(f"{empty[0]} is neither stored nor computed")


def _stored_name(checkpoint: Checkpoint, name: str) -> str:
    tied = checkpoint.config.tie_word_embeddings and name == "lm_head"
    return "model.language_model.embed_tokens" if tied else name


def to_torch(array: NDArray[Any]) -> Tensor:
    """The same memory as a tensor; torch knows numpy's bfloat16 only by its bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a mapped file cannot be written to: nothing here does
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array)
