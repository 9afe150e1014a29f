"""Round-to-nearest: the control that GPTQ and AWQ have to beat."""

from __future__ import annotations

import torch

from engines.int4 import Int4
from quantize.scales import absmax, encode


def rtn(W: torch.Tensor, group_size: int) -> Int4:
    """Quantises W [N, K] with scale max|w| / 7 per group of `group_size` columns, looking at no data."""
    return encode(W, absmax(W, group_size), group_size)
