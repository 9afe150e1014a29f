"""From chat messages to model inputs: text, images and videos, without torch or transformers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from tokenizers import Tokenizer

from engines.chat import ChatTemplate, MediaPart, split_media
from engines.config import ModelConfig, read_json, validation_message
from engines.errors import UserError
from engines.images import Grid, ImageConfig, prepare_image
from engines.positions import mrope_positions
from engines.tokenizer import IMAGE_PAD, VIDEO_PAD, VISION_END, VISION_START, load_tokenizer
from engines.videos import VideoConfig, prepare_video

PLACEHOLDER = re.compile(f"{re.escape(IMAGE_PAD)}|{re.escape(VIDEO_PAD)}")


@dataclass(frozen=True, eq=False)
class Media:
    """One image or video: grid (t, h, w) in patches, pixels f32 [t*h*w, 3 * temporal_patch * patch**2]."""

    kind: str
    grid: Grid
    pixels: NDArray[np.float32]

    @cached_property
    def digest(self) -> bytes:
        """Equal for equal pixels: what is remembered of an image is found by it."""
        return hashlib.sha256(repr(self.grid).encode() + self.pixels.tobytes()).digest()


@dataclass(frozen=True, eq=False)
class Inputs:
    """A prompt: input_ids int64 [S], positions int64 [3, S], media in order of appearance, and the position
    of the next text token."""

    input_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    media: tuple[Media, ...]
    next_position: int

    @classmethod
    def text(cls, token_ids: Sequence[int] | NDArray[np.int64]) -> Inputs:
        """Text tokens alone."""
        return cls(np.empty(0, np.int64), np.empty((3, 0), np.int64), (), 0).extend(token_ids)

    def extend(self, token_ids: Sequence[int] | NDArray[np.int64]) -> Inputs:
        """These inputs followed by text tokens."""
        added = np.asarray(token_ids, np.int64).reshape(-1)
        next_position = self.next_position + len(added)
        positions = np.tile(np.arange(self.next_position, next_position), (3, 1))
        return Inputs(
            np.concatenate([self.input_ids, added]),
            np.concatenate([self.positions, positions], axis=1),
            self.media,
            next_position,
        )


@dataclass(frozen=True, eq=False)
class Processor:
    """What stands between messages and a Session; loads from a checkpoint or a built artifact alike."""

    config: ModelConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    images: ImageConfig
    videos: VideoConfig

    @classmethod
    def load(cls, directory: Path) -> Processor:
        """Read the folder's config, tokenizer, chat template and preprocessor settings; UserError if they are
        missing, broken or do not fit each other."""
        directory = Path(directory)
        config = ModelConfig.load(directory)
        images, videos = _load_preprocessing(directory, config)
        return cls(config, load_tokenizer(directory, config), ChatTemplate.load(directory), images, videos)

    def __call__(
        self,
        messages: Sequence[dict[str, Any]],
        add_generation_prompt: bool = True,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
    ) -> Inputs:
        """Inputs of a conversation in OpenAI or Hugging Face form; UserError for whatever cannot be one."""
        plain, parts = split_media(messages)
        text = self.template.render(plain, tools=tools, add_generation_prompt=add_generation_prompt)
        text, media = self._place_media(text, parts)
        ids = np.array(self.tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
        merge = self.config.vision.spatial_merge_size
        # One (height, width) in merged tokens per placeholder: a video has one for each temporal group.
        grids = [(h // merge, w // merge) for item in media for t, h, w in [item.grid] for _ in range(t)]
        is_vision = np.isin(ids, (self.config.image_token_id, self.config.video_token_id))
        repeats = np.ones(len(ids), np.int64)
        repeats[is_vision] = [height * width for height, width in grids]
        positions, next_position = mrope_positions(np.repeat(is_vision, repeats), grids)
        return Inputs(np.repeat(ids, repeats), positions, tuple(media), next_position)

    def decode(self, ids: Sequence[int] | NDArray[np.int64], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    def _place_media(self, text: str, parts: Sequence[MediaPart]) -> tuple[str, list[Media]]:
        """Load the media and write each video's timestamps where the template put its placeholder."""
        names = {"image": IMAGE_PAD, "video": VIDEO_PAD}
        found, expected = PLACEHOLDER.findall(text), [names[part.kind] for part in parts]
        if found != expected:
            raise UserError(
                f"the prompt places {found.count(IMAGE_PAD)} images and {found.count(VIDEO_PAD)} videos, "
                f"the messages hold {expected.count(IMAGE_PAD)} and {expected.count(VIDEO_PAD)}: "
                "the chat template must place all media, in order"
            )
        media, replacements = [], []
        for part in parts:
            if part.kind == "image":
                pixels, grid = prepare_image(part.source, self.images)
                replacements.append(IMAGE_PAD)
            else:
                pixels, grid, seconds = prepare_video(part.source, part.fps, self.videos)
                group = VISION_START + VIDEO_PAD + VISION_END
                replacements.append("".join(f"<{second:.1f} seconds>{group}" for second in seconds))
            media.append(Media(part.kind, grid, pixels))
        queue = iter(replacements)
        return PLACEHOLDER.sub(lambda _: next(queue), text), media


def _load_preprocessing(directory: Path, config: ModelConfig) -> tuple[ImageConfig, VideoConfig]:
    """Settings by transformers' rules: processor_config.json's sections first, then a file for each; a folder
    without video settings uses its image settings for videos too."""
    path = directory / "processor_config.json"
    sections = read_json(path) if path.exists() else {}
    image = sections.get("image_processor") or read_json(directory / "preprocessor_config.json")
    path = directory / "video_preprocessor_config.json"
    video = sections.get("video_processor") or (read_json(path) if path.exists() else image)
    try:
        settings = ImageConfig.model_validate(image), VideoConfig.model_validate(video)
    except ValidationError as error:
        raise UserError(f"{directory}: preprocessor settings: {validation_message(error)}") from None
    vision = config.vision
    expected = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
    for found in settings:
        sizes = (found.patch_size, found.temporal_patch_size, found.merge_size)
        if sizes != expected:
            raise UserError(
                f"{directory}: the preprocessor's patch, temporal patch and merge sizes are {sizes}, "
                f"config.json's {expected}"
            )
    return settings
