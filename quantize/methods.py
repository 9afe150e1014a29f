"""The three methods over the seven linears of a decoder layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from engines.int4 import Int4
from quantize.awq import channel_scales, fold_into_linear, fold_into_norm, output_error, sampled
from quantize.gptq import gptq
from quantize.layers import Group, Statistics, Tensors
from quantize.rtn import rtn


@dataclass
class Quantized:
    """A layer as far as it is quantised, group by group, by "rtn", "gptq" or "awq", which GPTQ rounds too.

    linears: in 4 bits, as they are stored; changed: other tensors the method changed; errors: relative RMSE
    of each linear's outputs on the calibration set, and that of plain round-to-nearest.
    """

    tensors: Tensors
    method: str
    group_size: int
    damping: float
    linears: dict[str, Int4] = field(default_factory=dict)
    changed: Tensors = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)

    def replace(self, group: Group, found: Statistics) -> Tensors:
        """Quantises a group from the statistics of its inputs; returns what its weights are now.

        These multiply the layer's original input: scales that were folded elsewhere are taken out again.
        """
        hessian, names = found.hessian, group.linears
        parts = [self.tensors[f"{name}.weight"].float() for name in names]
        W = torch.cat(parts)  # they share their input, so also Hessian and factor
        s = torch.ones(W.shape[1])
        if self.method == "awq":
            s = self._fold(group, W, hessian, found.magnitude)
        if self.method == "rtn":
            stored = rtn(W, self.group_size)
        else:
            stored = gptq(W * s, hessian / s / s[:, None], self.group_size, damping=self.damping)
        effective = torch.from_numpy(stored.dequantize()).div_(s)
        start, weights = 0, {}
        for name, part in zip(names, parts, strict=True):
            rows = slice(start, start := start + len(part))
            self.linears[name] = Int4(stored.codes[rows], stored.scales[rows], self.group_size)
            self.errors[name] = relative_errors(part, effective[rows], hessian, self.group_size)
            weights[f"{name}.weight"] = effective[rows]
        return weights

    def _fold(
        self, group: Group, W: torch.Tensor, hessian: torch.Tensor, magnitude: torch.Tensor
    ) -> torch.Tensor:
        """AWQ's scales of the group's columns, divided out of whatever makes its input."""
        source = f"{group.source}.weight"
        made = self.tensors[source]
        if len(made) != len(magnitude):  # query heads share a value head: no one row feeds a column
            return torch.ones_like(magnitude)
        scales = channel_scales(W, hessian, magnitude, self.group_size)
        if group.source in self.linears:
            self.linears[group.source] = fold_into_linear(self.linears[group.source], scales)
        else:
            self.changed[source], scales = fold_into_norm(made, scales)
        return scales


def relative_errors(
    W: torch.Tensor, effective: torch.Tensor, hessian: torch.Tensor, group_size: int
) -> dict[str, float]:
    """Relative RMSE of the outputs of W [N, K], and that of round-to-nearest, on a sample of its rows."""
    W = sampled(W)
    control = torch.from_numpy(rtn(W, group_size).dequantize())
    whole = output_error(W, hessian).clamp(min=torch.finfo(torch.float32).tiny)
    return {
        key: float(f"{float((output_error(approximation - W, hessian) / whole).sqrt()):.4g}")
        for key, approximation in (("error", sampled(effective)), ("rtn_error", control))
    }
