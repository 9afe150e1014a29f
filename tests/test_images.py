"""Images against transformers' Pillow-backed Qwen2-VL image processor, bit for bit."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference_smart_resize

from engines.errors import UserError
from engines.images import ImageConfig, load_image, prepare_image, smart_resize

# Qwen/Qwen3-VL-2B-Instruct's preprocessor_config.json as published, and one like the embedded checkpoint's.
PUBLISHED: dict[str, Any] = {
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
SMALL = {**PUBLISHED, "patch_size": 8, "size": {"shortest_edge": 256, "longest_edge": 16384}}
UNEVEN = {
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 64},
    "patch_size": 7,
    "temporal_patch_size": 3,
    "merge_size": 4,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    bands = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}
    if mode in bands:
        return Image.fromarray(rng.integers(0, 256, (height, width, *bands[mode]), dtype=np.uint8), mode)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 400, (height, width), dtype=np.uint16))
    return picture(height, width).convert(mode)


def assert_same_as_reference(image: Image.Image, settings: dict[str, Any]) -> tuple[int, int, int]:
    reference = Qwen2VLImageProcessorPil(**settings)(image, return_tensors="np")
    pixels, grid = prepare_image(image, ImageConfig.model_validate(settings))
    assert list(grid) == reference["image_grid_thw"][0].tolist()
    assert pixels.dtype == reference["pixel_values"].dtype == np.float32
    np.testing.assert_array_equal(pixels, reference["pixel_values"])
    return grid


@pytest.mark.parametrize("settings", [PUBLISHED, SMALL, UNEVEN], ids=["published", "small", "uneven"])
@pytest.mark.parametrize(
    ("height", "width"),
    [(48, 64), (256, 256), (37, 91), (300, 201), (1, 1), (3, 150), (515, 33), (640, 480)],
)
def test_pixels_equal_the_reference(height: int, width: int, settings: dict[str, Any]) -> None:
    assert_same_as_reference(picture(height, width), settings)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(96, 128), (333, 200)])
def test_modes_equal_the_reference(mode: str, size: tuple[int, int]) -> None:
    assert_same_as_reference(picture(*size, mode=mode), SMALL)


def test_palette_transparency_equals_the_reference() -> None:
    image = picture(64, 64, mode="P")
    image.info["transparency"] = image.getpixel((0, 0))
    assert load_image(image).getpixel((0, 0)) == (255, 255, 255)
    assert_same_as_reference(image, SMALL)


def test_bounds_are_reached_from_both_sides() -> None:
    """The sizes above really shrink and grow."""
    config = ImageConfig.model_validate(SMALL)
    assert smart_resize(640, 480, config.factor, config.min_pixels, config.max_pixels) == (144, 96)
    assert smart_resize(3, 5, config.factor, config.min_pixels, config.max_pixels) == (16, 32)


@pytest.mark.parametrize("seed", range(4))
def test_smart_resize_equals_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    compared = 0
    for height, width in np.exp(rng.uniform(0, np.log(20_000), (2_000, 2))).astype(int).tolist():
        if max(height, width) > 200 * min(height, width):
            with pytest.raises(UserError, match="factor of 200"):
                smart_resize(height, width, 32, 65536, 16777216)
            continue
        for bounds in ((65536, 16777216), (256, 16384)):
            assert smart_resize(height, width, 32, *bounds) == reference_smart_resize(
                height, width, 32, *bounds
            )
        compared += 1
    assert compared > 1_000


def test_a_patch_by_hand() -> None:
    """One 4x4 image, patch 2, merge 1: patches row by row, in each its channels, in each two equal frames."""
    settings = {**SMALL, "patch_size": 2, "merge_size": 1, "size": {"shortest_edge": 16, "longest_edge": 16}}
    levels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    pixels, grid = prepare_image(Image.fromarray(levels), ImageConfig.model_validate(settings))
    assert grid == (1, 2, 2)
    red = np.array([24, 27, 36, 39])  # rows 2..3, columns 0..1 of channel 0: the third patch
    expected = np.concatenate([red, red, red + 1, red + 1, red + 2, red + 2])
    np.testing.assert_allclose(pixels[2] * 127.5 + 127.5, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_normalize": False}, "do_normalize"),
        ({"do_resize": False}, "do_resize"),
        ({"resample": 2}, "resample"),
        ({"patch_size": 0}, "patch_size"),
        ({"image_mean": [0.5]}, "image_mean"),
    ],
)
def test_refuses_other_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageConfig.model_validate({**PUBLISHED, **settings})


def test_older_and_empty_settings_equal_the_reference() -> None:
    """min_pixels and max_pixels are an older spelling of size; absent or null is the class's default."""
    for settings in ({"min_pixels": 28 * 28 * 4, "max_pixels": 28 * 28 * 16}, {}):
        reference = Qwen2VLImageProcessorPil(**settings)(picture(500, 300), return_tensors="np")
        pixels, _ = prepare_image(picture(500, 300), ImageConfig.model_validate({**settings, "size": None}))
        np.testing.assert_array_equal(pixels, reference["pixel_values"])


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def test_path_data_uri_and_image_are_the_same(tmp_path: Path) -> None:
    image = picture(60, 40, mode="RGBA")
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), data_uri(path.read_bytes())):
        np.testing.assert_array_equal(np.asarray(load_image(source)), np.asarray(load_image(image)))


def test_files_are_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture(20, 30).save(tmp_path / "picture.png", exif=exif)
    assert load_image(tmp_path / "picture.png").size == (20, 30)


def oversized_png() -> bytes:
    """A few bytes that claim 20,000 x 20,000 pixels."""
    chunk = bytearray(encoded(Image.new("L", (1, 1))))
    header = chunk.index(b"IHDR")
    chunk[header + 4 : header + 12] = (20_000).to_bytes(4, "big") * 2
    body = bytes(chunk[header : header + 17])
    chunk[header + 17 : header + 21] = PngImagePlugin._crc32(body).to_bytes(4, "big")
    return bytes(chunk)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.com/cat.png", r"is a URL: give a local path or a data URI"),
        ("/nonexistent/cat.png", r"/nonexistent/cat.png does not exist"),
        ("data:image/png,abc", r"no data URI of the form"),
        ("data:text/plain;base64,aGk=", r"no data URI of the form"),
        ("data:image/png;base64,###", r"broken base64"),
        (data_uri(b"no picture"), r"cannot be read: cannot identify"),
        (data_uri(half(encoded(picture(64, 64)))), r"cannot be read"),
        (data_uri(half(encoded(picture(64, 64), "JPEG")), "jpeg"), r"cannot be read: .*truncated"),
        (data_uri(half(encoded(picture(64, 64), "WEBP")), "webp"), r"cannot be read"),
        (data_uri(oversized_png()), r"has more than \d+ pixels"),
        (3, r"is given as int"),
        (["a.png"], r"is given as list"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_unusable_images(source: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_image(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_image(tmp_path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_limit_on_pixels_holds_where_pillow_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000)
    with pytest.raises(UserError, match="64 x 64 pixels: at most 3000"):
        load_image(data_uri(encoded(picture(64, 64))))


def test_a_long_path_still_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / ("folder" * 20) / "lost.png"
    with pytest.raises(UserError, match=r"lost\.png \(\d+ characters\) does not exist"):
        load_image(str(path))
