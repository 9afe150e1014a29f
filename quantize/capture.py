"""Hidden states of the calibration set as they enter the decoder: embeddings of text and vision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.processor import Inputs
from engines.weights import to_torch as mapped

TOKENS_AT_ONCE = 1024  # memory of this size is reused; larger pieces are mapped and cleared anew each time


@dataclass(frozen=True)
class Activations:
    """All sequences one after another, shortest first, T tokens of which V are visual; nothing is padding.

    hidden float32 [T, H]; positions int64 [3, T]; lengths of the sequences; visual int64 [V], the rows of the
    visual tokens; deepstack float32 [D, V, H], what the first D layers add to those rows.
    """

    hidden: torch.Tensor
    positions: torch.Tensor
    lengths: tuple[int, ...]
    visual: torch.Tensor
    deepstack: torch.Tensor

    def batches(self) -> Iterator[tuple[slice, int]]:
        """Rows of some sequences of one length, about a thousand tokens, and how many sequences they are."""
        start = 0
        for length, run in groupby(self.lengths):
            count, most = len(list(run)), max(1, TOKENS_AT_ONCE // length)
            for begin in range(0, count, most):
                sequences = min(most, count - begin)
                yield slice(start, start + sequences * length), sequences
                start += sequences * length

    def entering(self, hidden: torch.Tensor) -> Activations:
        """The same tokens at another depth."""
        return replace(self, hidden=hidden)


@torch.no_grad()
def capture(
    checkpoint: Checkpoint, prompts: Sequence[Inputs], progress: Callable[[int], None] = lambda done: None
) -> Activations:
    """Embeds every prompt; images and videos go through transformers' own vision tower in float32."""
    prompts = sorted(prompts, key=lambda prompt: len(prompt.input_ids))
    vision = vision_tower(checkpoint)
    embeddings = checkpoint.tensor("model.language_model.embed_tokens.weight")
    image, video = checkpoint.config.image_token_id, checkpoint.config.video_token_id
    hidden, visual, deepstack, start = [], [], [], 0
    for done, prompt in enumerate(prompts, start=1):
        states = to_torch(embeddings[prompt.input_ids]).float()
        rows = np.flatnonzero((prompt.input_ids == image) | (prompt.input_ids == video))
        if prompt.media:
            embeds, features = encode_media(vision, prompt)
            if len(embeds) != len(rows):
                raise UserError(
                    f"{len(rows)} visual tokens, {len(embeds)} embeddings: check the chat template"
                )
            states[torch.from_numpy(rows)] = embeds
            deepstack.append(features)
            visual.append(torch.from_numpy(rows + start))
        hidden.append(states)
        start += len(states)
        progress(done)
    depth, width = len(checkpoint.config.vision.deepstack_visual_indexes), checkpoint.config.text.hidden_size
    return Activations(
        hidden=torch.cat(hidden),
        positions=torch.from_numpy(np.concatenate([prompt.positions for prompt in prompts], axis=1)),
        lengths=tuple(len(prompt.input_ids) for prompt in prompts),
        visual=torch.cat([torch.empty(0, dtype=torch.int64), *visual]),
        deepstack=torch.cat([torch.empty(depth, 0, width), *deepstack], dim=1),
    )


def encode_media(vision: Any, prompt: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings [V, H] and deepstack features [D, V, H] of a prompt's images and videos, in their order."""
    pixels = torch.from_numpy(np.concatenate([media.pixels for media in prompt.media]))
    output = vision(pixels, grid_thw=torch.tensor([media.grid for media in prompt.media]))
    return output.pooler_output, torch.stack(output.deepstack_features)


def vision_tower(checkpoint: Checkpoint) -> Any:
    """transformers' vision module with the checkpoint's weights, in float32."""
    config = Qwen3VLConfig.from_pretrained(checkpoint.path).vision_config
    with torch.device("meta"):
        vision = Qwen3VLVisionModel(config)
    prefix = "model.visual."
    names = [name for name in checkpoint.names() if name.startswith(prefix)]
    state = {name.removeprefix(prefix): to_torch(checkpoint.tensor(name)).float() for name in names}
    vision.load_state_dict(state, assign=True)
    # Rotary frequencies are computed, not stored, and a module made on the meta device has none.
    vision.rotary_pos_emb = type(vision.rotary_pos_emb)(config)
    return vision.eval()


def to_torch(array: NDArray[Any]) -> torch.Tensor:
    """A copy, which may be written to."""
    return mapped(array.copy())
