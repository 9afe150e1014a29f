"""Masks of glyphs, shapes and handwritten digits, baked into assets.npz so that drawing a task needs no font.

`python -m bench.micro.assets` rebuilds the file. Sources:

- Latin letters and digits: DejaVu Sans Mono (Book, Bold) and DejaVu Sans (Bold), as shipped inside
  matplotlib; Bitstream Vera licence (free to use, embed and redistribute).
- Chinese characters: Noto Sans CJK SC (Regular, Bold) and Noto Serif CJK SC (Bold), Debian's fonts-noto-cjk;
  SIL Open Font License 1.1.
- Handwriting: scikit-learn's load_digits (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten
  Digits, UCI Machine Learning Repository, CC BY 4.0): 1,797 pictures of 8x8 in the order of their writers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PATH = Path(__file__).with_name("assets.npz")
LATIN = "0123456789ABCEFHKLTX"
CHINESE = "人口山水火木月中雨心"
CHARS = LATIN + CHINESE
SHAPES = ("circle", "square", "triangle", "cross", "ring")
CELL = 16  # pixels a side of one merged vision token
VARIANTS = 24  # drawings of each glyph and shape
SHAPE_SIZES = range(12, 21)

# Consecutive digits share their writer, so the splits are blocks: few writers are in two of them.
DIGIT_BLOCKS = {"train": range(1400), "calibration": range(1400, 1500), "test": range(1500, 1797)}


@dataclass(frozen=True)
class Assets:
    """uint8 masks, 255 = ink."""

    glyphs: np.ndarray  # [len(CHARS), VARIANTS, CELL, CELL]
    shapes: dict[int, np.ndarray]  # size s -> [len(SHAPES), VARIANTS, s, s]
    digits: np.ndarray  # [1797, 8, 8], 0..16
    digit_labels: np.ndarray  # [1797]


@cache
def load() -> Assets:
    with np.load(PATH) as file:
        return Assets(
            glyphs=file["glyphs"],
            shapes={size: file[f"shapes_{size}"] for size in SHAPE_SIZES},
            digits=file["digits"],
            digit_labels=file["digit_labels"],
        )


@cache
def digits_of(split: str, label: int) -> tuple[int, ...]:
    """Indices of the handwritten digits `label` which a split may show."""
    labels = load().digit_labels
    return tuple(i for i in DIGIT_BLOCKS[split] if labels[i] == label)


def main() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    arrays = {f"shapes_{size}": _shapes(size) for size in SHAPE_SIZES}
    np.savez_compressed(
        PATH,
        allow_pickle=False,
        glyphs=_glyphs(),
        digits=source.images.astype(np.uint8),
        digit_labels=source.target.astype(np.uint8),
        **arrays,
    )
    print(f"{PATH}: {PATH.stat().st_size} bytes")


def _glyphs() -> np.ndarray:
    import matplotlib

    vera = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    noto = Path("/usr/share/fonts/opentype/noto")
    latin = [
        ImageFont.truetype(vera / name, size)
        for name in ("DejaVuSansMono.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSans-Bold.ttf")
        for size in (14, 15, 16, 17)
    ]
    chinese = [
        ImageFont.truetype(noto / name, size, index=2)  # index 2 of the collection is SC
        for name in ("NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc", "NotoSerifCJK-Bold.ttc")
        for size in (14, 15, 16)
    ]
    rng = random.Random(3)
    masks = [
        _glyph(char, rng.choice(latin if char in LATIN else chinese), rng)
        for char in CHARS
        for _ in range(VARIANTS)
    ]
    return np.stack(masks).reshape(len(CHARS), VARIANTS, CELL, CELL)


def _glyph(char: str, font: ImageFont.FreeTypeFont, rng: random.Random) -> np.ndarray:
    mask = Image.new("L", (CELL, CELL))
    draw = ImageDraw.Draw(mask)
    left, top, right, bottom = draw.textbbox((0, 0), char, font=font)
    x = (CELL - (right - left)) / 2 + rng.uniform(-1, 1)
    y = (CELL - (bottom - top)) / 2 + rng.uniform(-1, 1)
    draw.text((round(x) - left, round(y) - top), char, font=font, fill=255)
    return np.asarray(mask)


def _shapes(size: int) -> np.ndarray:
    rng = random.Random(size)
    masks = [_shape(shape, size, rng) for shape in SHAPES for _ in range(VARIANTS)]
    return np.stack(masks).reshape(len(SHAPES), VARIANTS, size, size)


def _shape(shape: str, size: int, rng: random.Random) -> np.ndarray:
    scale = 8
    side = size * scale
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    r = side / 2 * rng.uniform(0.88, 0.99)
    x, y = (side / 2 + rng.uniform(-1, 1) * (side / 2 - r) for _ in range(2))
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        draw.ellipse(box, fill=255)
    elif shape == "ring":
        draw.ellipse(box, outline=255, width=round(r * rng.uniform(0.33, 0.42)))
    elif shape == "square":
        k = r * 0.9
        draw.rectangle((x - k, y - k, x + k, y + k), fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=255)
    else:
        k = r * rng.uniform(0.28, 0.36)
        draw.rectangle((x - r, y - k, x + r, y + k), fill=255)
        draw.rectangle((x - k, y - r, x + k, y + r), fill=255)
    return np.asarray(mask.resize((size, size), Image.Resampling.BOX))


if __name__ == "__main__":
    main()
