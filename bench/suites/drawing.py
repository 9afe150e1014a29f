"""Licensed fonts from packages, paper, and what damages a scan."""

from __future__ import annotations

import functools
import importlib.util
import io
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageFont, features

from engines.errors import UserError

Picture = Image.Image
Color = tuple[int, int, int]

# DejaVu (its own free licence) comes with matplotlib, Noto Sans CJK (OFL) with the package named after it.
DEJAVU = {
    "sans": "DejaVuSans.ttf",
    "bold": "DejaVuSans-Bold.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif-bold": "DejaVuSerif-Bold.ttf",
    "mono": "DejaVuSansMono.ttf",
    "mono-bold": "DejaVuSansMono-Bold.ttf",
}
CJK = {"japanese": 0, "korean": 1, "chinese": 2}  # faces of the collection: the same code, other glyphs


@functools.cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    """A face of DejaVu, or `japanese`, `korean` or `chinese`, or `arabic`, which has its letters joined.

    Raises UserError naming the package that is not there.
    """
    if face in CJK:
        path = package("noto_cjk_sans_otc", "noto-cjk-sans-otc") / "NotoSansCJK-Regular.ttc"
        return ImageFont.truetype(path, size, index=CJK[face], layout_engine=ImageFont.Layout.BASIC)
    if face == "arabic" and not features.check("raqm"):
        raise UserError("Pillow cannot join Arabic letters here: install libfribidi0, which its raqm loads")
    path = package("matplotlib", "matplotlib") / "mpl-data/fonts/ttf" / DEJAVU.get(face, DEJAVU["sans"])
    layout = ImageFont.Layout.RAQM if face == "arabic" else ImageFont.Layout.BASIC
    return ImageFont.truetype(path, size, layout_engine=layout)


def package(module: str, name: str) -> Path:
    """The folder of an installed package, whose files are wanted: importing it would take a second."""
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"the suite needs files of the package {name}, which is not installed: pip install {name}"
        )
    return Path(found.submodule_search_locations[0])


def paper(rng: random.Random, width: int, height: int, tone: int = 250) -> Picture:
    """A sheet that is not quite white nor quite even."""
    light = np.linspace(rng.uniform(-5, 0), rng.uniform(-5, 0), width)[None, :]
    light = light + np.linspace(rng.uniform(-5, 0), rng.uniform(-5, 0), height)[:, None]
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0, 1.2, (height, width))
    warm = np.array([0, -1, -rng.uniform(2, 9)])
    return _picture(tone + (light + grain)[..., None] + warm)


def backdrop(rng: random.Random, width: int, height: int) -> Picture:
    """A light wall with soft shadows for things to stand out from."""
    tint = np.array([rng.randint(214, 238) for _ in range(3)])
    soft = (tint + np.random.default_rng(rng.getrandbits(32)).integers(-14, 15, (4, 4, 1))).astype(np.uint8)
    return Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC)


def blurred(picture: Picture, rng: random.Random, level: int) -> Picture:
    return picture.filter(ImageFilter.GaussianBlur((0.9, 1.6, 2.4)[level]))


def rotated(picture: Picture, rng: random.Random, level: int) -> Picture:
    angle = rng.choice((-1, 1)) * (3, 8, 15)[level]
    corner = picture.getpixel((0, 0))
    return picture.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=corner)


def noisy(picture: Picture, rng: random.Random, level: int) -> Picture:
    noise = np.random.default_rng(rng.getrandbits(32)).normal(
        0, (20, 40, 65)[level], (picture.height, picture.width, 1)
    )
    return _picture(np.asarray(picture) + noise)


def faint(picture: Picture, rng: random.Random, level: int) -> Picture:
    """Ink that has all but the paper's shade."""
    top = np.asarray(picture).max(axis=(0, 1))
    return _picture(top - (top - np.asarray(picture, np.float64)) * (0.4, 0.22, 0.12)[level])


def jpeg(picture: Picture, rng: random.Random, level: int) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=(25, 12, 6)[level])
    return Image.open(buffer).convert("RGB")


# What a scan suffers, at three levels.
DAMAGE: Mapping[str, Callable[[Picture, random.Random, int], Picture]] = {
    "blur": blurred,
    "rotation": rotated,
    "noise": noisy,
    "contrast": faint,
    "jpeg": jpeg,
}


def _picture(values: np.typing.NDArray[np.float64]) -> Picture:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
