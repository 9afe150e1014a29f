"""Round-to-nearest: the control that GPTQ and AWQ have to beat, and in 8 bits what needs no better."""

from __future__ import annotations

import numpy as np
import torch

from engines.int4 import Int4
from engines.int8 import ZERO_POINT, Int8
from quantize.scales import LARGEST, SMALLEST, absmax, encode, grouped


def rtn(W: torch.Tensor, group_size: int) -> Int4:
    """Quantises W [N, K] with scale max|w| / 7 per group of `group_size` columns, looking at no data."""
    return encode(W, absmax(W, group_size), group_size)


def rtn8(W: torch.Tensor, group_size: int) -> Int8:
    """The same in 8 bits, with scale max|w| / 127: a sixteenth of the error.

    The scale is rounded up to 4 significant bits, so that code * scale (7 + 4 bits) is exact in float16.
    """
    groups = grouped(W, group_size)
    fraction, exponent = torch.frexp(groups.abs().amax(-1) / 127)
    scales = torch.ldexp((fraction * 16).ceil() / 16, exponent).clamp(SMALLEST, LARGEST)
    codes = (groups / scales[..., None]).round_().clamp_(-127, 127).reshape(W.shape)
    unsigned = (codes + ZERO_POINT).to(torch.uint8).contiguous()
    return Int8(unsigned.numpy(), scales.numpy().astype(np.float16), group_size)
