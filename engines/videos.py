"""Videos as the vision tower reads them: sampled, resized, cut into patches, a timestamp per temporal group.

Equal to transformers' Qwen3VLVideoProcessor in sampling, sizes, layout and normalisation. Frames are resized
by Pillow's bicubic like images, the reference uses torchvision's: frames that need no resize are bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, PositiveInt

from engines.errors import UserError
from engines.images import (
    Grid,
    ImageConfig,
    Pixels,
    PositiveTriple,
    Triple,
    check_aspect_ratio,
    fit,
    load_image,
    patchify,
    resize,
)


class VideoConfig(ImageConfig):
    """video_preprocessor_config.json. Defaults are the reference class's."""

    patch_size: PositiveInt = 16
    min_pixels: Pixels = 128 * 32 * 32
    max_pixels: Pixels = 32 * 32 * 768
    image_mean: Triple = (0.5, 0.5, 0.5)
    image_std: PositiveTriple = (0.5, 0.5, 0.5)
    fps: Annotated[float, Field(gt=0, le=1000)] = 2
    min_frames: PositiveInt = 4
    max_frames: PositiveInt = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: PositiveInt = 768

    def levels(self) -> NDArray[np.float32]:
        """As for images, but the reference's video path folds the rescaling into mean and deviation."""
        scale = np.float32(1 / self.rescale_factor)
        mean, std = (
            np.array(triple, np.float32)[:, None] * scale for triple in (self.image_mean, self.image_std)
        )
        levels: NDArray[np.float32] = (np.arange(256, dtype=np.float32) - mean) / std
        return levels


def prepare_video(
    source: str | Path | Sequence[Any], fps: float | None, config: VideoConfig
) -> tuple[NDArray[np.float32], Grid, list[float]]:
    """Pixels, grid (t, h, w) and t timestamps in seconds of one video.

    A list of frames is taken as already sampled at `fps` frames per second; a path is decoded by PyAV and
    sampled to the configured rate. Raises UserError for an unusable source.
    """
    if isinstance(source, str | Path):
        frames, indices, rate = _sample_file(Path(source), config)
    elif isinstance(source, list | tuple):
        frames, indices, rate = map(load_image, source), np.arange(len(source)), _frame_rate(fps)
    else:
        raise UserError(f"a video is given as {type(source).__name__}: expected a path or a list of frames")
    if len(indices) < config.temporal_patch_size:
        raise UserError(
            f"a video needs {config.temporal_patch_size} frames or more, got {len(indices)}: send an image"
        )
    resized = _resize_all(frames, len(indices), config)
    pixels, grid = patchify(resized, config, config.levels())
    return pixels, grid, timestamps(indices, rate, config.temporal_patch_size)


def sample_indices(total: int, rate: float, config: VideoConfig) -> NDArray[np.int64]:
    """Which of `total` frames, at `rate` frames per second, to keep for the configured rate and bounds."""
    wanted = int(total / rate * config.fps)
    count = min(max(wanted, config.min_frames), config.max_frames, total)
    return np.linspace(0, total - 1, count).round().astype(np.int64)


def timestamps(indices: Iterable[int], rate: float, group: int) -> list[float]:
    """Seconds of each temporal group: midway from its first to its last frame, the last repeated to fill."""
    seconds = [int(index) / rate for index in indices]
    seconds += seconds[-1:] * (-len(seconds) % group)
    return [(seconds[i] + seconds[i + group - 1]) / 2 for i in range(0, len(seconds), group)]


def smart_resize_video(count: int, height: int, width: int, config: VideoConfig) -> tuple[int, int]:
    """Size of every frame, the bounds on pixels being over the whole video."""
    factor = config.factor
    max_pixels = config.max_pixels
    if config.cap_pixels_per_frame:
        share = min(config.max_video_tokens * factor**2, config.max_pixels // count)
        max_pixels = max(share, int(config.min_pixels * 1.05)) * count
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    check_aspect_ratio(height, width)
    even_count = round(count / config.temporal_patch_size) * config.temporal_patch_size
    return fit(height, width, factor, count, even_count, config.min_pixels, max_pixels)


def _frame_rate(fps: Any) -> float:
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise UserError(f"a video given as frames has fps {fps!r}: expected the list's frames per second")
    return float(fps)


def _resize_all(frames: Iterator[Image.Image], count: int, config: VideoConfig) -> NDArray[np.uint8]:
    """Resize one frame at a time: a long video at its own size would not fit in memory."""
    first = next(frames)
    height, width = smart_resize_video(count, first.height, first.width, config)
    resized = np.empty((count, height, width, 3), np.uint8)
    resized[0] = np.asarray(resize(first, height, width))
    for i, frame in enumerate(frames, start=1):
        if frame.size != first.size:
            raise UserError(
                f"video frame {i} has {frame.size} pixels, the first has {first.size}: expected one size"
            )
        resized[i] = np.asarray(resize(frame, height, width))
    return resized


def _sample_file(path: Path, config: VideoConfig) -> tuple[Iterator[Image.Image], NDArray[np.int64], float]:
    import av  # a shared library of codecs: only videos given as files need it

    if not path.is_file():
        raise UserError(f"video {path} does not exist: expected a local path or a list of frames")
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise UserError(f"video {path} holds no video stream")
            stream = container.streams.video[0]
            # Some containers (Matroska, MPEG-TS) do not store the number of frames.
            total = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
            rate = float(stream.average_rate or 0)
    except av.FFmpegError as error:
        raise UserError(f"video {path} cannot be read: {error}") from None
    if not total or not rate:
        raise UserError(
            f"video {path} has {total} frames at {rate:g} frames per second: expected a moving picture"
        )
    indices = sample_indices(total, rate, config)
    return _decode(path, indices, total), indices, rate


def _decode(path: Path, indices: NDArray[np.int64], total: int) -> Iterator[Image.Image]:
    import av

    wanted = set(indices.tolist())
    count = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                if count in wanted:
                    yield Image.fromarray(frame.to_ndarray(format="rgb24"))
                count += 1
                if count > indices[-1]:
                    return
    except av.FFmpegError as error:
        raise UserError(f"video {path} cannot be decoded at frame {count}: {error}") from None
    raise UserError(f"video {path} ends after {count} of {total} frames: the file is truncated")
