"""Videos against transformers' Qwen3VLVideoProcessor: sampling, sizes, pixels, timestamps, files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.video_utils import VideoMetadata, read_video_pyav

from engines.errors import UserError
from engines.images import ImageConfig
from engines.videos import VideoConfig, prepare_video, sample_indices, smart_resize_video, timestamps
from tests.references import ReferenceVideoProcessor, StandIn, video_module

# Qwen/Qwen3-VL-2B-Instruct's video_preprocessor_config.json as published, and one for small models.
PUBLISHED: dict[str, Any] = {
    "size": {"longest_edge": 25165824, "shortest_edge": 4096},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "fps": 2,
    "min_frames": 4,
    "max_frames": 768,
}
SMALL = {**PUBLISHED, "patch_size": 8, "size": {"shortest_edge": 2048, "longest_edge": 32768}}
UNEVEN = {
    **SMALL,
    "temporal_patch_size": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def reference(settings: dict[str, Any], **more: Any) -> ReferenceVideoProcessor:
    return ReferenceVideoProcessor(**{"cap_pixels_per_frame": False, **settings, **more})


@pytest.mark.parametrize("settings", [PUBLISHED, SMALL, UNEVEN], ids=["published", "small", "uneven"])
@pytest.mark.parametrize(
    ("frames", "height", "width"),
    [(4, 64, 96), (3, 64, 64), (5, 48, 80), (7, 32, 32), (6, 250, 201), (4, 9, 30)],
)
def test_pixels_equal_the_reference(frames: int, height: int, width: int, settings: dict[str, Any]) -> None:
    video = clip(frames, height, width)
    expected = reference(settings)(video, do_sample_frames=False, return_tensors="np")
    pixels, grid, seconds = prepare_video(
        [Image.fromarray(frame) for frame in video], 2.0, VideoConfig.model_validate(settings)
    )
    assert list(grid) == expected["video_grid_thw"][0].tolist()
    assert pixels.dtype == expected["pixel_values_videos"].dtype == np.float32
    np.testing.assert_array_equal(pixels, expected["pixel_values_videos"])
    assert len(seconds) == grid[0]


def test_frames_that_fit_need_no_resize_stand_in() -> None:
    """Against the class's own patchify and normalisation alone, no resize called on either side."""
    video = clip(4, 64, 96)
    processor = reference(SMALL)
    frames = torch.from_numpy(video).permute(0, 3, 1, 2)[None]
    normal = processor.rescale_and_normalize(frames, True, 1 / 255, True, (0.5,) * 3, (0.5,) * 3)
    patches, *grid = processor.patchify(normal, patch_size=8, merge_size=2, temporal_patch_size=2)
    pixels, found, _ = prepare_video(
        [Image.fromarray(frame) for frame in video], 2.0, VideoConfig.model_validate(SMALL)
    )
    assert list(found) == grid
    np.testing.assert_array_equal(pixels, patches[0].numpy())


@pytest.mark.parametrize(("size", "target"), [((48, 64), (96, 128)), ((200, 300), (96, 160))])
def test_pillow_s_resize_is_close_to_torch_s(size: tuple[int, int], target: tuple[int, int]) -> None:
    """The reference resizes frames by torch's antialiased bicubic: within one level of 255 of Pillow's."""
    (frame,) = clip(1, *size)
    ours = np.asarray(Image.fromarray(frame).resize(target[::-1], Image.Resampling.BICUBIC)).astype(int)
    channels = torch.from_numpy(frame).permute(2, 0, 1)[None]
    theirs = torch.nn.functional.interpolate(channels, target, mode="bicubic", antialias=True)
    difference = np.abs(ours - theirs[0].permute(1, 2, 0).numpy())
    assert difference.max() <= 1
    assert difference.mean() < 0.01


class SizeOnly(StandIn):
    """The reference's own choice of a size, with the pixel work left out."""

    def resize(self, image: torch.Tensor, size: Any, resample: Any, **_: Any) -> Any:
        return size.height, size.width


class SizeProcessor(video_module.Qwen3VLVideoProcessor, SizeOnly):  # type: ignore[misc, name-defined]
    pass


@pytest.mark.parametrize("cap", [False, True])
@pytest.mark.parametrize("settings", [PUBLISHED, SMALL], ids=["published", "small"])
def test_sizes_equal_the_reference(settings: dict[str, Any], cap: bool) -> None:
    config = VideoConfig.model_validate({**settings, "cap_pixels_per_frame": cap})
    processor = SizeProcessor(**settings)
    rng = np.random.default_rng(0)
    compared = 0
    for height, width in np.exp(rng.uniform(1, 8, (500, 2))).astype(int).tolist():
        frames = int(rng.integers(2, 300))
        video = torch.empty(1, 1, 1, 1, 1).expand(1, frames, 3, height, width)
        try:
            expected = processor.resize(
                video, processor.size, 3, config.factor, config.temporal_patch_size, cap_pixels_per_frame=cap
            )
        except ValueError:
            with pytest.raises(UserError, match="factor of 200"):
                smart_resize_video(frames, height, width, config)
            continue
        assert smart_resize_video(frames, height, width, config) == expected
        compared += 1
    assert compared > 400


@pytest.mark.parametrize("rate", [1.0, 2.0, 23.976, 24, 30, 60.0])
@pytest.mark.parametrize("total", [1, 2, 3, 5, 24, 121, 3_000, 50_000])
@pytest.mark.parametrize("settings", [PUBLISHED, {**PUBLISHED, "fps": 0.5, "max_frames": 16}])
def test_sampling_equals_the_reference(settings: dict[str, Any], total: int, rate: float) -> None:
    expected = reference(settings).sample_frames(VideoMetadata(total_num_frames=total, fps=rate))
    np.testing.assert_array_equal(sample_indices(total, rate, VideoConfig.model_validate(settings)), expected)


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_timestamps_equal_the_reference(count: int, group: int) -> None:
    indices = np.linspace(0, 250, count).round().astype(int)
    expected = Qwen3VLProcessor._calculate_timestamps(None, indices, 23.976, group)
    assert timestamps(indices, 23.976, group) == expected


def test_timestamps_by_hand() -> None:
    """Frames at 0, 0.5, 1 second in groups of two: the middle of 0 and 0.5, then 1 with itself."""
    assert timestamps([0, 1, 2], 2.0, 2) == [0.25, 1.0]


def write_video(path: Path, frames: np.ndarray, rate: int = 8, codec: str = "ffv1") -> Path:
    """Losslessly, so that every frame is known."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(rate))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_file_is_sampled_as_the_reference_does(tmp_path: Path, suffix: str) -> None:
    """24 frames at 8 per second, wanted at 2: six. Matroska does not store how many frames there are."""
    frames = clip(24, 32, 48)
    path = write_video(tmp_path / f"clip{suffix}", frames)
    config = VideoConfig.model_validate(SMALL)
    pixels, grid, seconds = prepare_video(path, None, config)
    indices = np.linspace(0, 23, 6).round().astype(int)
    from_frames, _, _ = prepare_video([Image.fromarray(frames[i]) for i in indices], 2, config)
    np.testing.assert_array_equal(pixels, from_frames)
    assert grid[0] == 3
    assert seconds == Qwen3VLProcessor._calculate_timestamps(None, indices, 8.0, 2)


def test_file_equals_transformers_decoder(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", clip(30, 48, 64), rate=10, codec="mpeg4")
    processor = reference(SMALL)
    video, metadata = read_video_pyav(str(path), lambda metadata, **_: processor.sample_frames(metadata))
    expected = processor(video, do_sample_frames=False, return_tensors="np")
    pixels, _, seconds = prepare_video(str(path), None, VideoConfig.model_validate(SMALL))
    np.testing.assert_array_equal(pixels, expected["pixel_values_videos"])
    assert seconds == Qwen3VLProcessor._calculate_timestamps(None, metadata.frames_indices, 10.0, 2)


def truncated(path: Path) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def as_text(path: Path) -> Path:
    path.write_text("no video")
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.mp4", r"none.mp4 does not exist"),
        (lambda folder: as_text(folder / "clip.mp4"), r"cannot be read"),
        (
            lambda folder: truncated(write_video(folder / "a.avi", clip(24, 32, 48))),
            r"ends after \d+ of 24 frames",
        ),
        (lambda folder: sound(folder / "a.wav"), r"holds no video stream"),
        (lambda folder: write_video(folder / "a.avi", clip(1, 32, 48)), r"needs 2 frames or more, got 1"),
        (lambda folder: "https://example.com/a.mp4", r"does not exist: expected a local path"),
    ],
)
def test_unusable_files(tmp_path: Path, make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_video(make(tmp_path), None, VideoConfig.model_validate(SMALL))


FRAME = Image.new("RGB", (32, 32))


@pytest.mark.parametrize(
    ("frames", "fps", "message"),
    [
        ([FRAME, FRAME], None, "fps None: expected the list's frames per second"),
        ([FRAME, FRAME], 0, "fps 0"),
        ([FRAME, FRAME], "2", "fps '2'"),
        ([FRAME, FRAME], float("nan"), "fps nan"),
        ([FRAME], 2, "needs 2 frames or more, got 1: send an image"),
        ([], 2, "got 0"),
        (
            [FRAME, Image.new("RGB", (32, 48))],
            2,
            r"video frame 1 has \(32, 48\) pixels, the first has \(32, 32\)",
        ),
        ([FRAME, "/nonexistent.png"], 2, "does not exist"),
        ([Image.new("RGB", (4, 900))] * 2, 2, "factor of 200"),
        (7, 2, "given as int: expected a path or a list of frames"),
    ],
)
def test_unusable_frames(frames: Any, fps: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare_video(frames, fps, VideoConfig.model_validate(SMALL))


def test_defaults_are_the_reference_class_s() -> None:
    processor, config = ReferenceVideoProcessor(), VideoConfig.model_validate({})
    assert (config.min_pixels, config.max_pixels) == (
        processor.size.shortest_edge,
        processor.size.longest_edge,
    )
    for name in set(VideoConfig.model_fields) - {"min_pixels", "max_pixels", "cap_pixels_per_frame"}:
        found, expected = getattr(config, name), getattr(processor, name)
        assert found == (tuple(expected) if isinstance(expected, list) else expected), name
    assert issubclass(VideoConfig, ImageConfig)
