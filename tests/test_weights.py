"""Stored weights under transformers' modules give what transformers gives with a model loaded in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.int4 import Int4
from engines.reference import ReferenceSession
from engines.weights import BLOCK, Codes, StoredEmbedding, StoredLinear, to_torch
from tests.checkpoints import write_checkpoint
from tests.int4_checkpoints import write_int4_pair

COLUMNS = 96
ROWS = BLOCK // COLUMNS + 7  # a full block and a part of one


def int4_weight() -> Int4:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (ROWS, COLUMNS), np.uint8)
    return Int4(codes, rng.random((ROWS, COLUMNS // 32)).astype(np.float16), 32)


def stored(kind: str) -> tuple[Tensor | Int4, Tensor]:
    """A weight as stored, and what it stands for in float32."""
    if kind == "int4":
        weight = int4_weight()
        return weight, torch.from_numpy(weight.dequantize())
    dense = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).to(getattr(torch, kind))
    return dense, dense.float()


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "int4"])
@pytest.mark.parametrize("shape", [(COLUMNS,), (1, COLUMNS), (2, 3, COLUMNS)])
@pytest.mark.parametrize("biased", [False, True])
def test_linear_is_the_float32_product(kind: str, shape: tuple[int, ...], biased: bool) -> None:
    weight, dense = stored(kind)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    bias = torch.randn(ROWS) if biased else None
    found = StoredLinear(weight, bias)(x)
    expected = torch.nn.functional.linear(x, dense, bias)
    assert found.shape == expected.shape
    assert found.dtype == torch.float32
    # The order of summation may differ with the size of a block; rounding x or W to 16 bits would be 1e-3.
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_embedding_widens_the_rows_it_gives() -> None:
    table = torch.randn(5, 4).bfloat16()
    ids = torch.tensor([[4, 0, 4]])
    assert torch.equal(StoredEmbedding(table, torch.float32)(ids), table.float()[ids])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_tensors_share_the_checkpoint_s_memory(dtype: Any) -> None:
    array = np.arange(6).astype(dtype).reshape(2, 3)
    tensor = to_torch(array)
    assert tensor.data_ptr() == array.ctypes.data
    assert tensor.float().tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(("dtype", "tied"), [(torch.bfloat16, True), (torch.float16, False)])
def test_model_gives_transformers_own_logits(
    micro_checkpoint: Path, tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", micro_checkpoint, dtype=dtype, tied=tied, shards=2)
    ours = ReferenceSession(folder, dtype="float32").model
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    image = Checkpoint.open(folder).config.image_token_id
    ids = torch.tensor([[3, *[image] * 4, 7, 8, 9]])
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == image).long(),
        "pixel_values": torch.randn(16, 3 * 2 * 8 * 8),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }
    with torch.inference_mode():
        found, expected = ours(**inputs).logits, theirs(**inputs).logits
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_large_weights_are_not_copied(micro_checkpoint: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", micro_checkpoint, dtype=torch.bfloat16)
    model = ReferenceSession(folder, dtype="float32").model
    linears = [child for child in model.modules() if isinstance(child, StoredLinear)]
    assert len(linears) == 2 * 7 + 2 * 4 + 2 * 2 + 1  # decoder layers, vision blocks, mergers, head
    assert {linear.stored.dtype for linear in linears if isinstance(linear.stored, Tensor)} == {
        torch.bfloat16
    }
    embedding = model.model.language_model.embed_tokens.table
    assert model.lm_head.stored.data_ptr() == embedding.data_ptr()
    assert max(parameter.numel() for parameter in model.parameters()) < embedding.numel()


@pytest.mark.parametrize("int4", [False, True])
def test_a_session_moves_to_another_device_whole(micro_checkpoint: Path, tmp_path: Path, int4: bool) -> None:
    """Weights are no parameters of their modules, and must be moved all the same."""
    folder = write_int4_pair(micro_checkpoint, tmp_path)[0] if int4 else micro_checkpoint
    model = ReferenceSession(folder, dtype="float32").model.to("meta")
    stored = [module for module in model.modules() if isinstance(module, StoredLinear | StoredEmbedding)]
    assert stored
    for module in stored:
        held = [*vars(module).values()]
        held += [part for value in held if isinstance(value, Codes) for part in vars(value).values()]
        assert all(tensor.is_meta for tensor in held if isinstance(tensor, Tensor))


def test_a_gpu_that_is_not_there_is_one_clear_line(micro_checkpoint: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"device cuda: this torch \(.+\) finds no GPU; expected cpu"):
        ReferenceSession(micro_checkpoint, device="cuda")
