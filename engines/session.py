"""The one face of every way to run a model: prompts in, logits out, a cache between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engines.cache import Cache
from engines.config import ModelConfig
from engines.errors import UserError
from engines.memory import check_address_space
from engines.onnx_files import DECODER
from engines.processor import Inputs


class Session(Protocol):
    """A loaded model. Sequences of a batch may differ in length; padding is the session's own business.

    vision_s: seconds that the last prefill spent on images and videos.
    """

    config: ModelConfig
    vision_s: float

    def prefill(
        self, prompts: Sequence[Inputs], *, capacity: int, keep: int = 1
    ) -> tuple[NDArray[np.float32], Cache]:
        """Logits f32 [B, keep, V] of each prompt's last `keep` positions, and a cache of `capacity` tokens.

        Raises UserError when a prompt does not fit the capacity or the capacity not the model.
        """

    def extend(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """Append text tokens int64 [B, S], S to each sequence; logits f32 [B, S, V] of what follows each.

        cache.rewind takes them back. Raises UserError when they do not fit the cache.
        """

    def decode(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """Append tokens int64 [B], one to each sequence; logits f32 [B, V] of what follows them."""

    def forget(self) -> None:
        """Drop what is remembered of images and videos: the next prompt is answered as a first one."""


def open_session(directory: Path, *, threads: int | None = None, device: str = "cpu") -> Session:
    """The session for a folder: onnxruntime for an ONNX artifact, transformers for a safetensors checkpoint.

    threads: CPU threads, by default as many as there are cores. device: where a checkpoint runs, cpu or cuda;
    ONNX graphs run on the CPU, and engines bring their own. Raises UserError when the folder is neither.
    """
    directory = Path(directory)
    if (directory / DECODER).exists():
        from engines.onnx_session import OnnxSession

        return OnnxSession(directory, threads=threads)
    if any(directory.glob("*.safetensors")):
        check_address_space()
        from engines.reference import ReferenceSession

        return ReferenceSession(directory, threads=threads, device=device)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder: expected a checkpoint or a built artifact")
    raise UserError(
        f"{directory} has neither {DECODER} nor *.safetensors: expected an artifact or a checkpoint"
    )
