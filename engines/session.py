"""The one face of every way to run a model: prompts in, logits out, a cache between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engines.config import ModelConfig
from engines.errors import UserError
from engines.onnx_files import DECODER
from engines.processor import Inputs


@dataclass(eq=False)
class Cache:
    """What a session remembers of B sequences.

    lengths int64 [B]: tokens cached; positions int64 [B]: rotary position of each sequence's next token;
    capacity: the most tokens a sequence may reach; state: the session's own tensors.
    """

    lengths: NDArray[np.int64]
    positions: NDArray[np.int64]
    capacity: int
    state: Any

    def check_decode(self, tokens: NDArray[np.int64]) -> None:
        """UserError unless there is one token for each sequence and room for it."""
        if tokens.shape != self.lengths.shape:
            raise UserError(f"{tokens.shape} tokens for {len(self.lengths)} cached sequences: give one each")
        if self.lengths.max() >= self.capacity:
            raise UserError(f"the cache is full at {self.capacity} tokens: prefill with a larger capacity")

    def advance(self) -> None:
        """Count one more token in every sequence."""
        self.lengths += 1
        self.positions += 1


class Session(Protocol):
    """A loaded model. Sequences of a batch may differ in length; padding is the session's own business."""

    config: ModelConfig

    def prefill(
        self, prompts: Sequence[Inputs], *, capacity: int, keep: int = 1
    ) -> tuple[NDArray[np.float32], Cache]:
        """Logits f32 [B, keep, V] of each prompt's last `keep` positions, and a cache of `capacity` tokens.

        Raises UserError when a prompt does not fit the capacity or the capacity not the model.
        """

    def decode(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """Append tokens int64 [B], one to each sequence; logits f32 [B, V] of what follows them."""


def open_session(directory: Path, *, threads: int | None = None) -> Session:
    """The session for a folder: onnxruntime for an ONNX artifact, transformers for a safetensors checkpoint.

    threads: CPU threads, by default as many as there are cores. Raises UserError when the folder is neither.
    """
    directory = Path(directory)
    if (directory / DECODER).exists():
        from engines.onnx_session import OnnxSession

        return OnnxSession(directory, threads=threads)
    if any(directory.glob("*.safetensors")):
        from engines.reference import ReferenceSession

        return ReferenceSession(directory, threads=threads)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder: expected a checkpoint or a built artifact")
    raise UserError(
        f"{directory} has neither {DECODER} nor *.safetensors: expected an artifact or a checkpoint"
    )


def check_prefill(prompts: Sequence[Inputs], capacity: int, keep: int, config: ModelConfig) -> None:
    """UserError unless every prompt has `keep` tokens, fits the capacity, and the capacity fits the model."""
    lengths = [len(prompt.input_ids) for prompt in prompts]
    if not lengths or min(lengths) < keep or keep < 1:
        raise UserError(
            f"prompts of {lengths} tokens: expected at least one, of {max(keep, 1)} tokens or more"
        )
    if capacity < max(lengths):
        raise UserError(f"a prompt of {max(lengths)} tokens does not fit a cache of {capacity}: shorten it")
    if capacity > (limit := config.text.max_position_embeddings):
        raise UserError(f"a cache of {capacity} tokens: the model ends at {limit}, ask for less")
