"""The vision tower of an ONNX artifact: images and videos in, token embeddings and deepstack features out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.config import ModelConfig
from engines.errors import UserError
from engines.onnx_runtime import check_file, open_model, releasing
from engines.processor import Inputs, Media
from engines.rotary import vision_frequencies

PATCHES_PER_RUN = 4096  # frames of a video pass the tower in runs of about so many patches
REMEMBERED_BYTES = 64 * 2**20  # ten images of 448 x 448 for a 2B model


@dataclass(frozen=True, eq=False)
class VisionTokens:
    """Where a prompt's M vision tokens stand, int64 [M] ascending, and what they are, f32 [1 + n, M, H].

    The first of the 1 + n features is the token embedding, the others are added after the decoder's first n
    layers (DeepStack, arXiv:2406.04334). remembered: how many of the media were seen before.
    """

    where: NDArray[np.int64]
    features: NDArray[np.float32]
    remembered: int = 0


UNSEEN = VisionTokens(np.empty(0, np.int64), np.empty((1, 0, 0), np.float32))


class VisionTower:
    """vision.onnx and the geometry it is fed with. Opened by the first image: text alone does without.

    The last media's features are kept, least recently used first out, for an image that is asked about again.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        threads: int | None,
        provider: str,
        patches: int | None = None,
    ) -> None:
        """patches: the most that an image may have, where the tower is an engine."""
        check_file(path)
        self.config, self._patches = config, patches
        self._open = partial(open_model, path, threads, provider)
        self._seen: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    @cached_property
    def _graph(self) -> Any:
        return self._open()

    def __call__(self, prompt: Inputs) -> VisionTokens:
        """Encode the prompt's media; UserError when they do not make as many tokens as the prompt has."""
        ids = (self.config.image_token_id, self.config.video_token_id)
        where = np.flatnonzero(np.isin(prompt.input_ids, ids))
        empty = np.empty(
            (1 + len(self.config.vision.deepstack_visual_indexes), 0, self.config.text.hidden_size)
        )
        remembered = sum(media.digest in self._seen for media in prompt.media)
        features = np.concatenate([empty, *map(self._remember, prompt.media)], axis=1, dtype=np.float32)
        if features.shape[1] != len(where):
            raise UserError(f"the prompt has {len(where)} vision tokens, its media make {features.shape[1]}")
        return VisionTokens(where, features, remembered)

    def _remember(self, media: Media) -> NDArray[np.float32]:
        """What _encode gives, from the media seen before if their pixels are the same."""
        if media.digest not in self._seen:
            self._seen[media.digest] = self._encode(media)
        self._seen.move_to_end(media.digest)
        while len(self._seen) > 1 and sum(found.nbytes for found in self._seen.values()) > REMEMBERED_BYTES:
            self._seen.popitem(last=False)
        return self._seen[media.digest]

    def forget(self) -> None:
        """Every media is new again."""
        self._seen.clear()

    def _encode(self, media: Media) -> NDArray[np.float32]:
        """Features [1 + n, tokens, H] of one image or video."""
        runs = [self._graph.run(None, feeds, releasing())[0] for feeds in self.feeds(media)]
        return np.concatenate(runs, axis=1, dtype=np.float32)

    def feeds(self, media: Media) -> Iterator[dict[str, NDArray[Any]]]:
        """The graph's inputs for an image or video: some frames after another."""
        frames, height, width = media.grid
        vision = self.config.vision
        positions = patch_positions(height, width, vision.spatial_merge_size)
        side = round(vision.num_position_embeddings**0.5)
        indices, weights = interpolation(positions, height, width, side)
        shapes = {value.name: value.shape for value in self._graph.get_inputs()}
        if "patch_positions" in shapes:  # the fused dialect
            floats: type[np.floating] = np.float32
            places: dict[str, NDArray[Any]] = {"patch_positions": positions}
        else:
            floats = np.float16
            angles = positions.astype(np.float32) @ vision_frequencies(vision)
            places = {"rotary_cos": np.cos(angles)[None], "rotary_sin": np.sin(angles)[None]}
            places = {name: array.astype(floats) for name, array in places.items()}
        most = self._patches
        if most and height * width > most:
            raise UserError(
                f"an image of {height * width} patches, these engines take {most}: send a smaller one"
            )
        shared = {"position_indices": indices, "position_weights": weights.astype(floats), **places}
        pixels = media.pixels.reshape(frames, height * width, -1).astype(floats, copy=False)
        size = 1 if shapes["pixel_values"][0] == 1 else max(1, PATCHES_PER_RUN // (height * width))
        for start in range(0, frames, size):
            yield {"pixel_values": pixels[start : start + size], **shared}


def patch_positions(height: int, width: int, merge: int) -> NDArray[np.int64]:
    """Row and column of every patch of a height x width grid, int64 [height * width, 2].

    In the tower's order: merge x merge blocks, row by row, so that a block's patches are neighbours.
    """
    raster = np.indices((height, width))
    blocks = raster.reshape(2, height // merge, merge, width // merge, merge).transpose(1, 3, 2, 4, 0)
    return blocks.reshape(-1, 2)


def interpolation(
    positions: NDArray[np.int64], height: int, width: int, side: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Bilinear resampling, corners aligned, of a side x side table of embeddings to height x width patches.

    Returns the rows of the table around every patch, int64 [4, P], and their weights, f32 [4, P, 1].
    """
    steps = np.maximum(np.array([height, width], np.float32) - 1, 1)
    exact = positions.astype(np.float32) * np.float32(side - 1) / steps
    low = np.floor(exact).astype(np.int64)
    high = np.minimum(low + 1, side - 1)
    share = exact - low.astype(np.float32)
    rows, columns = (((low[:, i], 1 - share[:, i]), (high[:, i], share[:, i])) for i in range(2))
    corners = [(row * side + column, a * b) for row, a in rows for column, b in columns]
    weights = np.stack([weight for _, weight in corners], dtype=np.float32)
    return np.stack([index for index, _ in corners]), weights[:, :, None]
