"""Pictures and videos of a request: read within limits that are checked before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from engines.images import upright
from serve.arm.errors import ApiError
from serve.arm.fetch import fetch

# Of Pillow's formats, those that clients send: some of the others run programs, or decode without bound.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
# A container is known by its first bytes. FFmpeg would also take playlists, which name files to be opened.
CONTAINERS = ((4, b"ftyp"), (0, b"\x1a\x45\xdf\xa3"), (8, b"AVI "))


@dataclass(frozen=True)
class Limits:
    """max_pixels: of all pictures of a request together, and of one video frame. max_frames: of a video as it
    is stored. max_video_pixels: of all its frames. seconds: of fetching one URL."""

    max_file_bytes: int = 20_000_000
    max_pixels: int = 64_000_000
    max_frames: int = 7200
    max_video_pixels: int = 15_000_000_000  # so many frames of 1920 x 1080
    max_media: int = 64
    seconds: float = 10.0
    allow_private: bool = False

    @property
    def max_body_bytes(self) -> int:
        """Of a request: some files at their largest, in base64."""
        return 4 * self.max_file_bytes

    @property
    def max_bodies_bytes(self) -> int:
        """Of all requests that are being read or answered."""
        return 4 * self.max_body_bytes


def refused(message: str) -> ApiError:
    return ApiError(400, message, param="messages", code="invalid_media")


async def load(url: str, limits: Limits, count: Callable[[int], object] = lambda _: None) -> bytes:
    """The bytes of a data URI or behind an http(s) URL; ApiError for anything else or too large.

    `count` is told of what is fetched, as it comes.
    """
    if not url.startswith("data:"):
        seconds, private = limits.seconds, limits.allow_private
        most = limits.max_file_bytes
        return await fetch(url, max_bytes=most, seconds=seconds, allow_private=private, count=count)
    head, comma, payload = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise refused("a data URI is not of the form data:TYPE;base64,DATA")
    try:
        data = base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise refused(f"a data URI holds broken base64: {error}") from None
    if len(data) > limits.max_file_bytes:
        raise refused(f"a file of {len(data)} bytes: at most {limits.max_file_bytes} are accepted")
    return data


def read_images(files: list[bytes], limits: Limits) -> list[Image.Image]:
    """RGB pictures of encoded ones; ApiError for what is none, is damaged, or has too many pixels in all."""
    opened = [_open(data) for data in files]
    pixels = sum(image.width * image.height for image in opened)
    if pixels > limits.max_pixels:
        raise refused(f"the pictures have {pixels} pixels: at most {limits.max_pixels} are accepted")
    return [_decode(image) for image in opened]


def _open(data: bytes) -> Image.Image:
    """The header alone is read."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise refused(f"a picture has more than {Image.MAX_IMAGE_PIXELS} pixels") from None
    except Exception:  # whatever a codec makes of hostile bytes, the picture is what is wrong
        raise refused(f"a picture cannot be read: expected {', '.join(FORMATS)}") from None


def _decode(image: Image.Image) -> Image.Image:
    try:
        return upright(image)
    except Exception as error:
        raise refused(f"a picture is damaged: {error}") from None


@contextmanager
def video_files(files: list[bytes], limits: Limits) -> Iterator[list[Path]]:
    """Videos as files, for as long as they are needed; ApiError for one that is none or too large."""
    with tempfile.TemporaryDirectory(prefix="arm-video-") as directory:
        paths = []
        for number, data in enumerate(files):
            if not any(data[at : at + len(magic)] == magic for at, magic in CONTAINERS):
                raise refused("a video cannot be read: expected MP4, MOV, MKV, WebM or AVI")
            path = Path(directory) / str(number)
            path.write_bytes(data)
            _check_video(path, limits)
            paths.append(path)
        yield paths


def _check_video(path: Path, limits: Limits) -> None:
    import av  # a shared library of codecs: only videos need it

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise refused("a video holds no pictures")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            frames = stream.frames or sum(1 for packet in container.demux(stream) if packet.size)
    except av.FFmpegError as error:
        raise refused(f"a video cannot be read: {error.strerror}") from None
    pixels = width * height
    if pixels > limits.max_pixels or frames > limits.max_frames or pixels * frames > limits.max_video_pixels:
        raise refused(
            f"a video of {frames} frames of {width} x {height} pixels: at most {limits.max_frames} frames "
            f"of {limits.max_pixels} pixels, {limits.max_video_pixels} in all, are accepted"
        )
