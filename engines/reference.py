"""The baseline: a checkpoint run by transformers, positions and padding included, behind the same face."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.utils import logging

from engines.bounded_memory import empty_cache, in_chunks
from engines.cache import Cache, check_prefill
from engines.checkpoint import Checkpoint
from engines.errors import UserError, reason
from engines.processor import Inputs
from engines.weights import assign

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(eq=False)
class State:
    """transformers' keys and values, and the attention mask [B, tokens so far] with its left padding."""

    past: Any
    mask: torch.Tensor


class ReferenceSession:
    """A Session over transformers' Qwen3VLForConditionalGeneration."""

    def __init__(
        self, directory: Path, *, dtype: str | None = None, threads: int | None = None, device: str = "cpu"
    ) -> None:
        """Load the checkpoint in `directory`; UserError when transformers cannot.

        dtype: float32, bfloat16 or float16; by default the one the checkpoint is stored in, where the device
        multiplies in it (see compute_dtype). threads: torch's, for the whole process. device: cpu or cuda.
        Weights stay in memory as they are stored, 4-bit ones as a byte to a code.
        """
        if dtype not in (None, *DTYPES):
            raise UserError(f"dtype {dtype}: expected one of {', '.join(DTYPES)}")
        # transformers would fill a missing tensor with noise; this refuses it.
        checkpoint = Checkpoint.open(directory)
        self.config = checkpoint.config
        if threads:
            torch.set_num_threads(threads)
        if device != "cpu" and not torch.cuda.is_available():
            raise UserError(f"device {device}: this torch ({torch.__version__}) finds no GPU; expected cpu")
        self.model = _load(checkpoint, getattr(torch, dtype or compute_dtype(checkpoint, device)), device)
        self.vision_s = 0.0
        self.model.model.visual.forward = self._timed(self.model.model.visual.forward)

    def prefill(
        self, prompts: Sequence[Inputs], *, capacity: int, keep: int = 1
    ) -> tuple[NDArray[np.float32], Cache]:
        """See Session.prefill."""
        check_prefill(prompts, capacity, keep, self.config)
        lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        ids, mask = np.zeros((2, len(prompts), lengths.max()), np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, -lengths[row] :] = prompt.input_ids
            mask[row, -lengths[row] :] = 1
        kinds = np.where(
            ids == self.config.image_token_id, 1, np.where(ids == self.config.video_token_id, 2, 0)
        )
        tokens = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        media = _media(prompts)
        grids = {name: value for name, value in media.items() if name.endswith("grid_thw")}
        positions, deltas = self.model.model.get_rope_index(
            mm_token_type_ids=torch.from_numpy(kinds), **tokens, **grids
        )
        past, self.vision_s = empty_cache(self.config.text.num_hidden_layers, capacity), 0.0
        logits = self._run(positions, keep, past_key_values=past, **tokens, **media)
        cache_positions = lengths + deltas[:, 0].numpy()
        return logits, Cache(lengths, cache_positions, capacity, State(past, tokens["attention_mask"]))

    def extend(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """See Session.extend."""
        cache.check_extend(tokens)
        state, size, held = cache.state, tokens.shape[1], int(cache.lengths.max())
        state.past.crop(held - state.mask.shape[1])  # minus what was rewound
        state.mask = torch.nn.functional.pad(state.mask[:, :held], (0, size), value=1)
        positions = torch.from_numpy(np.tile(cache.positions[:, None] + np.arange(size), (3, 1, 1)))
        logits = self._run(
            positions,
            size,
            input_ids=torch.from_numpy(tokens),
            attention_mask=state.mask,
            past_key_values=state.past,
        )
        cache.advance(size)
        return logits

    def decode(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        """See Session.decode."""
        return self.extend(tokens[:, None], cache)[:, 0]

    def forget(self) -> None:
        """See Session.forget. Nothing is remembered."""

    def _timed(self, see: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            seen = see(*args, **kwargs)
            if self.model.device.type == "cuda":  # which goes on in the background
                torch.cuda.synchronize()
            self.vision_s += time.perf_counter() - began
            return seen

        return timed

    def _run(self, positions: torch.Tensor, keep: int, **inputs: Any) -> NDArray[np.float32]:
        """Logits f32 [B, keep, V] for mRoPE positions [3, B, S]."""
        size = inputs["input_ids"].shape[1]
        text = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)[None, :, -size:]
        inputs = {"position_ids": torch.cat([text, positions]), **inputs}
        device = self.model.device
        inputs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        with torch.inference_mode():
            output = self.model(logits_to_keep=keep, use_cache=True, **inputs)
        logits: NDArray[np.float32] = output.logits.float().cpu().numpy()
        return logits


def _media(prompts: Sequence[Inputs]) -> dict[str, torch.Tensor]:
    """transformers takes all images of a batch as one tensor, and all videos as another."""
    names = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
    tensors = {}
    for kind, (pixels, grid) in names.items():
        if media := [item for prompt in prompts for item in prompt.media if item.kind == kind]:
            tensors[pixels] = torch.from_numpy(np.concatenate([item.pixels for item in media]))
            tensors[grid] = torch.tensor([item.grid for item in media])
    return tensors


def _load(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> Any:
    with _quiet():
        try:
            config = Qwen3VLConfig.from_pretrained(checkpoint.path, local_files_only=True)
            with torch.device("meta"):
                model = Qwen3VLForConditionalGeneration(config)
        except Exception as error:  # it takes config.json's word for all that we do not read
            if reason(error):
                raise
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"{checkpoint.path / 'config.json'}: transformers refuses it, {found}") from None
    assign(model, checkpoint, dtype)
    text = model.model.language_model
    text.forward = in_chunks(text.forward)
    model.to(device)
    if checkpoint.config.tie_word_embeddings:  # moved, they would be two
        model.lm_head.stored = model.model.language_model.embed_tokens.table
    return model


def compute_dtype(checkpoint: Checkpoint, device: str = "cpu") -> str:
    """The type a checkpoint is stored in if a GPU is to run it or this CPU has instructions for it, else
    float32.

    float32 holds every 16-bit weight exactly. Emulating 16-bit products makes large ones many times slower,
    and a baseline that slow would flatter everything compared with it.
    """
    stored = checkpoint.tensor("model.language_model.norm.weight").dtype.name
    names = {"bfloat16": ("avx512_bf16", "amx_bf16"), "float16": ("avx512_fp16", "amx_fp16")}
    found = torch.cpu.get_capabilities()
    if device != "cpu":
        return stored
    return stored if any(found.get(name) for name in names.get(stored, ())) else "float32"


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither progress bars nor advice from transformers while it loads; both as before afterwards."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
