"""The three methods over the seven linears of a decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from engines.int4 import Int4
from quantize.awq import channel_scales, clipped, fold_into_norm, output_error
from quantize.gptq import gptq
from quantize.layers import GROUPS, Statistics
from quantize.rtn import rtn

Tensors = dict[str, torch.Tensor]


@dataclass
class Quantized:
    """A layer's linears in 4 bits and the other tensors the method changed.

    `effective` is what each linear now multiplies the layer's original input by: the dequantised weight, with
    any scales that were folded elsewhere taken out again, so that it compares with the original weight.

    """

    linears: dict[str, Int4] = field(default_factory=dict)
    changed: Tensors = field(default_factory=dict)
    effective: Tensors = field(default_factory=dict)


def quantize_layer(
    method: str, tensors: Tensors, statistics: Sequence[Statistics], group_size: int, damping: float
) -> Quantized:
    """Quantises the linears of one layer by "rtn", "gptq" or "awq"."""
    if method == "awq":
        return _awq(tensors, statistics, group_size)
    result = Quantized()
    for group, found in zip(GROUPS, statistics, strict=True):
        for name in group.linears:
            W = tensors[f"{name}.weight"].float()
            result.linears[name] = (
                rtn(W, group_size) if method == "rtn" else gptq(W, found.hessian, group_size, damping=damping)
            )
            result.effective[name] = torch.from_numpy(result.linears[name].dequantize())
    return result


def _awq(tensors: Tensors, statistics: Sequence[Statistics], group_size: int) -> Quantized:
    """Scales first, group by group, then clipping of the scaled weights."""
    result = Quantized()
    weights = {name: tensors[f"{name}.weight"].float() for group in GROUPS for name in group.linears}
    inputs: Tensors = {}  # scale of each linear's columns
    outputs = {name: torch.ones(len(W)) for name, W in weights.items()}  # divisor of each linear's rows
    for group, found in zip(GROUPS, statistics, strict=True):
        scales = channel_scales(
            [weights[name] for name in group.linears], found.hessian, found.magnitude, group_size
        )
        if group.source not in weights:
            norm = f"{group.source}.weight"
            result.changed[norm], scales = fold_into_norm(tensors[norm], scales)
        elif len(outputs[group.source]) == len(scales):
            outputs[group.source] = scales
        else:  # query heads share a value head: no one row feeds a column
            scales = torch.ones_like(scales)
        inputs |= dict.fromkeys(group.linears, scales)
    for group, found in zip(GROUPS, statistics, strict=True):
        for name in group.linears:
            s, rows = inputs[name], outputs[name][:, None]
            hessian = found.hessian / s / s[:, None]
            result.linears[name] = clipped(weights[name] * s / rows, hessian, group_size)
            result.effective[name] = torch.from_numpy(result.linears[name].dequantize()) * rows / s
    return result


def relative_errors(
    tensors: Tensors, quantized: Quantized, statistics: Sequence[Statistics], group_size: int
) -> dict[str, dict[str, float]]:
    """Relative RMSE of each linear's output on the calibration set, and that of plain round-to-nearest."""
    errors = {}
    for group, found in zip(GROUPS, statistics, strict=True):
        for name in group.linears:
            W = tensors[f"{name}.weight"].float()
            control = torch.from_numpy(rtn(W, group_size).dequantize())
            size = output_error(W, found.hessian).clamp(min=torch.finfo(torch.float32).tiny)
            errors[name] = {
                key: float(f"{float((output_error(approximation - W, found.hessian) / size).sqrt()):.4g}")
                for key, approximation in (("error", quantized.effective[name]), ("rtn_error", control))
            }
    return errors
