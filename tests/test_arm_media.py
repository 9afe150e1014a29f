"""What is sent as a picture or video: read as a user expects, or refused before it costs anything."""

from __future__ import annotations

import asyncio
import base64
import io
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from serve.arm.errors import ApiError
from serve.arm.media import Limits, load, read_images, video_files

LIMITS = Limits(max_file_bytes=100_000, max_pixels=10_000, max_frames=20, max_video_pixels=50_000)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(data: bytes) -> np.ndarray:
    (image,) = read_images([data], LIMITS)
    assert image.mode == "RGB"
    return np.asarray(image)


RAMP = np.linspace(0, 65535, 32 * 48).reshape(32, 48).astype(np.uint16)
ROWS, COLUMNS = np.indices((32, 48))
SCENE = np.stack([ROWS * 7, COLUMNS * 5, ROWS + COLUMNS], axis=-1).astype(np.uint8)


def test_ordinary_formats_give_their_pixels() -> None:
    for kind in ("PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        found = read(encoded(Image.fromarray(SCENE), kind, **options))
        error = np.abs(found.astype(int) - SCENE).mean()
        assert error < (20 if kind in ("GIF", "JPEG") else 1e-9), kind


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(kind: str) -> None:
    found = read(encoded(Image.fromarray(RAMP), kind))
    assert (found == (RAMP >> 8)[..., None]).all()


def test_cmyk_is_converted() -> None:
    found = read(encoded(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), "JPEG"))
    assert np.abs(found.astype(int) - (255, 0, 0)).max() < 12


def test_a_turned_camera_is_turned_back() -> None:
    image = Image.fromarray(SCENE)
    exif = image.getexif()
    exif[0x0112] = 6  # the top is at the right
    assert (read(encoded(image, "PNG", exif=exif)) == np.rot90(SCENE, -1)).all()


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (32, 32), shade) for shade in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert np.abs(read(data).astype(int) - (255, 0, 0)).max() < 8, kind


def test_transparency_is_white() -> None:
    assert (read(encoded(Image.new("RGBA", (32, 32), (0, 0, 0, 0)), "PNG")) == 255).all()


def bomb() -> bytes:
    """A PNG of a few hundred bytes whose header promises 40,000 x 40,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9000)))


PNG = encoded(Image.fromarray(SCENE), "PNG")
BAD: dict[str, tuple[list[bytes], str]] = {
    "nothing": ([b""], "cannot be read"),
    "text": ([b"hello"], "cannot be read"),
    "program": ([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"], "cannot be read"),
    "truncated": ([PNG[: len(PNG) // 2]], "is damaged"),
    "bomb": ([bomb()], "pixels"),
    "large": ([encoded(Image.new("RGB", (101, 100)), "PNG")], "10100 pixels: at most 10000"),
    "many": ([PNG] * 7, "10752 pixels: at most 10000"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_refused(name: str) -> None:
    files, message = BAD[name]
    with pytest.raises(ApiError, match=message) as caught:
        read_images(files, LIMITS)
    assert caught.value.status == 400


def test_damage_anywhere_is_refused_or_read() -> None:
    """No damage to any byte gets past as anything but a picture or a refusal."""
    random = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        good = encoded(Image.fromarray(SCENE), kind)
        for _ in range(60):
            data = bytearray(good)
            for at in random.integers(0, len(data), 3):
                data[at] = random.integers(256)
            for tried in (data, data[: random.integers(len(data))]):
                with suppress(ApiError):
                    assert read_images([bytes(tried)], LIMITS)[0].mode == "RGB"


def get(url: str) -> bytes:
    return asyncio.run(load(url, LIMITS))


def test_data_uris() -> None:
    uri = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert get(uri) == PNG
    for bad, message in (
        ("data:image/png,abc", "not of the form"),
        ("data:image/png;base64,a?b", "broken base64"),
        (f"data:image/png;base64,{base64.b64encode(bytes(100_001)).decode()}", "at most 100000"),
        ("file:///etc/passwd", "nor an http or https"),
        ("/etc/passwd", "nor an http or https"),
        ("gopher://example.org/", "nor an http or https"),
        ("http://user:password@example.org/", "without user and password"),
        ("http://:80/", "nor an http or https"),
        ("http://example.org:99999/", "nor an http or https"),
    ):
        with pytest.raises(ApiError, match=message):
            get(bad)


def video(path: Path, frames: int = 8, size: tuple[int, int] = (64, 48)) -> bytes:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for shade in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((*size[::-1], 3), shade * 9, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path.read_bytes()


def test_videos_are_files_for_a_while(tmp_path: Path) -> None:
    good = [video(tmp_path / f"a.{kind}") for kind in ("mp4", "mkv", "avi")]
    with video_files(good, LIMITS) as paths:
        assert [path.read_bytes() for path in paths] == good
    assert not any(path.exists() for path in paths)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "expected MP4"),
        (lambda path: b"ffconcat version 1.0\nfile /etc/passwd\n", "expected MP4"),
        (lambda path: video(path / "a.mp4")[:200], "cannot be read|holds no pictures"),
        (lambda path: video(path / "a.mp4", frames=21), "21 frames of 64 x 48"),
        (lambda path: video(path / "a.mkv", frames=21), "21 frames of 64 x 48"),
        (lambda path: video(path / "a.mp4", frames=2, size=(128, 96)), "128 x 96"),
        (lambda path: video(path / "a.mp4", frames=17), "17 frames of 64 x 48"),
    ],
)
def test_bad_videos_are_refused(tmp_path: Path, make: Callable[[Path], bytes], message: str) -> None:
    with pytest.raises(ApiError, match=message), video_files([make(tmp_path)], LIMITS):
        pass
