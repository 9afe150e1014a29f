"""What an arm says it will take, before it loads anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engines.checkpoint import Checkpoint
from engines.config import ModelConfig
from engines.export import export
from serve.arm.memory import forecast
from tests.checkpoints import write_checkpoint
from tests.int4_checkpoints import write_int4_pair

HIDDEN = 256


def weights(folder: Path) -> int:
    return forecast(folder, ModelConfig.load(folder), slots=1, context=256).weights


def test_an_untied_head_takes_no_more_than_a_tied_one(micro_checkpoint: Path, tmp_path: Path) -> None:
    """Two tables are stored in place of one, but of the embeddings few rows are read."""
    found = {}
    for tied in (True, False):
        folder = tmp_path / str(tied)
        dense = write_checkpoint(
            folder / "fp16", micro_checkpoint, layers=1, depth=1, hidden_size=HIDDEN, tied=tied,
            dtype=torch.float16,
        )  # fmt: skip
        export(Checkpoint.open(dense), folder / "onnx")
        export(Checkpoint.open(write_int4_pair(dense, folder)[0]), folder / "int4")
        found[tied] = [weights(folder / name) for name in ("fp16", "onnx", "int4")]
    assert found[False] == pytest.approx(found[True], abs=20_000)  # headers, and where pages begin
    assert 2 * ModelConfig.load(dense).text.vocab_size * HIDDEN > 200_000  # what it would be off by
