"""Images as the vision tower reads them: loaded, resized, normalised and cut into patches.

Numerically equal to transformers' Qwen2VLImageProcessorPil, which needs neither torch nor torchvision.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from engines.errors import UserError

MAX_ASPECT_RATIO = 200
Grid = tuple[int, int, int]
Triple = tuple[float, float, float]
PositiveTriple = tuple[PositiveFloat, PositiveFloat, PositiveFloat]
Pixels = Annotated[int, Field(gt=0, le=1 << 31)]


class ImageConfig(BaseModel):
    """preprocessor_config.json. Defaults are the reference class's."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    patch_size: PositiveInt = 14
    temporal_patch_size: PositiveInt = 2
    merge_size: PositiveInt = 2
    min_pixels: Pixels = 56 * 56
    max_pixels: Pixels = 28 * 28 * 1280
    image_mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    image_std: PositiveTriple = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: PositiveFloat = 1 / 255
    # Named so that a configuration asking for anything else is refused.
    resample: Literal[3] = 3  # Pillow's BICUBIC
    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True

    @model_validator(mode="before")
    @classmethod
    def _flatten_size(cls, data: Any) -> Any:
        """`size` carries the bounds on pixels under names from another age; null means the default."""
        if not isinstance(data, dict):
            return data
        size = data.get("size")
        size = size if isinstance(size, dict) else {}
        bounds = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")}
        return {key: value for key, value in {**bounds, **_present(data)}.items() if value is not None}

    @property
    def factor(self) -> int:
        """Height and width are resized to multiples of this many pixels."""
        return self.patch_size * self.merge_size

    def levels(self) -> NDArray[np.float32]:
        """[3, 256]: each channel's normalised value of every 8-bit level, rounded as the reference does."""
        rescaled = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean = np.array(self.image_mean, np.float32)[:, None]
        std = np.array(self.image_std, np.float32)[:, None]
        return (rescaled - mean) / std


def _present(data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if value is not None}


def prepare_image(source: Image.Image | str | Path, config: ImageConfig) -> tuple[NDArray[np.float32], Grid]:
    """Pixels f32 [h*w, 3 * temporal_patch * patch * patch] and grid (1, h, w) of one image.

    Raises UserError for an image that cannot be used.
    """
    image = load_image(source)
    height, width = smart_resize(
        image.height, image.width, config.factor, config.min_pixels, config.max_pixels
    )
    frame = np.asarray(resize(image, height, width))
    return patchify(frame[None], config, config.levels())


def load_image(source: Image.Image | str | Path) -> Image.Image:
    """An RGB image from a PIL image, a local path or a base64 data URI; transparency becomes white.

    Raises UserError for URLs, missing, damaged or truncated files and decompression bombs.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source)
    if not isinstance(source, str | Path):
        raise UserError(
            f"an image is given as {type(source).__name__}: expected a path, data URI or PIL image"
        )
    text = str(source)
    # Both ends: one says what it is, the other which file.
    shown = text if len(text) <= 80 else f"{text[:30]}...{text[-40:]} ({len(text)} characters)"
    if text.startswith(("http://", "https://")):
        raise UserError(f"image {shown} is a URL: give a local path or a data URI")
    stream = io.BytesIO(_decode_data_uri(text, shown)) if text.startswith("data:") else Path(source)
    try:
        with Image.open(stream) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise UserError(
                    f"image {shown} has {image.width} x {image.height} pixels: at most "
                    f"{Image.MAX_IMAGE_PIXELS} are accepted"
                )
            return upright(image)
    except FileNotFoundError:
        raise UserError(f"image {shown} does not exist") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UserError(f"image {shown} has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's codecs raise all three on damaged files
        raise UserError(f"image {shown} cannot be read: {error}") from None


def _decode_data_uri(uri: str, shown: str) -> bytes:
    head, comma, payload = uri.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise UserError(f"image {shown} is no data URI of the form data:image/...;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise UserError(f"image {shown} holds broken base64: {error}") from None


def upright(image: Image.Image) -> Image.Image:
    """An opened file's picture in RGB, turned as its camera was; an animation's first frame."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip all but the darkest to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return _to_rgb(image)


def _to_rgb(image: Image.Image) -> Image.Image:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Nearest multiples of `factor` that keep the aspect ratio and lie within the bounds on pixels."""
    check_aspect_ratio(height, width)
    return fit(height, width, factor, 1, 1, min_pixels, max_pixels)


def check_aspect_ratio(height: int, width: int) -> None:
    """UserError beyond the reference's limit: such pictures would resize to nothing on one side."""
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            f"{width} x {height} pixels: sides may differ by a factor of {MAX_ASPECT_RATIO} at most"
        )


def fit(
    height: int, width: int, factor: int, frames: int, even_frames: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Multiples of `factor` near height and width, the bounds being on frames * height * width."""
    fitted = round(height / factor) * factor, round(width / factor) * factor
    if even_frames * fitted[0] * fitted[1] > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        return (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    if even_frames * fitted[0] * fitted[1] < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        return math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
    return fitted


def resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Pillow's bicubic, which antialiases when it shrinks."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)


def patchify(
    frames: NDArray[np.uint8], config: ImageConfig, levels: NDArray[np.float32]
) -> tuple[NDArray[np.float32], Grid]:
    """Cut frames [F, H, W, 3] into patches f32 [t*h*w, 3 * temporal_patch * patch * patch], and their grid.

    Rows run over temporal groups, then merge windows row by row, then the patches within a window; the last
    frame is repeated to fill the last temporal group. An image is one frame.
    """
    count, height, width, channels = frames.shape
    time, patch, merge = config.temporal_patch_size, config.patch_size, config.merge_size
    grid = (-(-count // time), height // patch, width // patch)
    filled = frames[np.minimum(np.arange(grid[0] * time), count - 1)]
    split = filled.reshape(
        grid[0], time, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch, channels
    )
    # Reorder bytes first: they are a quarter of the floats they become.
    patches = np.ascontiguousarray(split.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)).reshape(
        math.prod(grid), channels, -1
    )
    pixels = np.empty(patches.shape, np.float32)
    for channel in range(channels):
        pixels[:, channel] = levels[channel][patches[:, channel]]
    return pixels.reshape(len(patches), -1), grid
