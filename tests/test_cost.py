"""The counted operations of quantising a layer against those torch really makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engines.checkpoint import Checkpoint
from quantize import cost
from quantize.awq import RATIOS, ROWS
from quantize.capture import Activations
from quantize.layers import BLOCK, Decoder, load_layer
from quantize.methods import Quantized
from quantize.scales import SHRINKS
from tests.checkpoints import write_checkpoint

SHAPE = {"layers": 1, "hidden_size": 512, "intermediate_size": 1024, "heads": 8, "head_dim": 64}


def in_place(total: tuple[int, int], left: tuple[int, int], right: tuple[int, int], **options: Any) -> int:
    """Of addmm_, which torch does not count by itself."""
    return 2 * left[0] * left[1] * right[1]


@pytest.mark.parametrize(
    ("method", "kv_heads", "uncounted"),
    # LAPACK's factorisations and the products of a matrix and a vector within a block go uncounted.
    [("rtn", 4, 0.0), ("awq", 4, 0.15), ("awq", 8, 0.15), ("gptq", 4, 0.15)],
)
def test_operations_are_those_of_a_run(
    micro_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    kv_heads: int,
    uncounted: float,
) -> None:
    source = Checkpoint.open(write_checkpoint(tmp_path / "c", micro_checkpoint, kv_heads=kv_heads, **SHAPE))
    decoder, tensors, tokens = Decoder(source), load_layer(source, 0), 512
    activations = Activations(
        hidden=torch.randn(tokens, 512, generator=torch.Generator().manual_seed(0)),
        positions=torch.arange(64).repeat(tokens // 64).expand(3, -1),
        lengths=(64,) * (tokens // 64),
        visual=torch.arange(0),
        deepstack=torch.zeros(1, 0, 512),
    )
    layer = Quantized(tensors, method, group_size=64, damping=0.01)
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: in_place}) as counter:
        decoder.run(tensors, activations, layer.replace)
    monkeypatch.setattr(cost, "ROUNDING", 0)
    counted = cost.operations(source.config, method, tokens, group_size=64)
    attention = 4 * tokens * 64 * 512  # as torch counts it; beside the linears it is nothing
    made = counter.get_total_flops()
    assert made - attention <= counted * (1 + 1e-6)
    assert counted * (1 - uncounted - 1e-6) <= made


def test_constants_are_those_of_the_work() -> None:
    assert cost.MOMENT_BLOCK == BLOCK
    assert cost.ERROR_ROWS == ROWS
    assert len(RATIOS) == cost.RATIOS
    assert len(SHRINKS) == cost.SHRINKS
