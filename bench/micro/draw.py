"""Painting masks into small RGB pictures, with colour jitter and pixel noise."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from bench.micro.assets import CELL, CHARS, SHAPES, VARIANTS, load

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 210, 50),
    "black": (25, 25, 25),
    "purple": (150, 60, 190),
    "white": (250, 250, 250),
    "orange": (245, 140, 30),
}
CLASSES = (*CHARS, *SHAPES, ".")  # what a cell can hold; "." is nothing
EMPTY = len(CLASSES) - 1
COLOR_NAMES = tuple(COLORS)
UNLABELLED = -1

# Drawing noise afresh would cost more than all the rest; windows of one fixed table are as good here.
_NOISE = np.random.default_rng(5).standard_normal(1 << 19, dtype=np.float32)


@dataclass(frozen=True)
class Media:
    """One picture (a single frame, no fps) or one video (an even number of frames).

    `classes` and `colors` name what is centred in each CELL x CELL cell of each frame pair, as indices into
    CLASSES and COLOR_NAMES, or UNLABELLED: the targets of the auxiliary loss, never shown to the model.
    """

    frames: np.ndarray  # uint8 [F, H, W, 3]
    fps: float | None
    classes: np.ndarray  # int64 [max(1, F // 2), H / CELL, W / CELL]
    colors: np.ndarray  # the same shape


class Canvas:
    """A float32 picture [H, W, 3] being painted, with the labels of its cells."""

    def __init__(self, height: int, width: int, background: np.ndarray) -> None:
        self.pixels = np.empty((height, width, 3), np.float32)
        self.pixels[:] = background
        self.classes = np.full((height // CELL, width // CELL), EMPTY)
        self.colors = np.full((height // CELL, width // CELL), UNLABELLED)

    def paint(self, mask: np.ndarray, y: int, x: int, ink: np.ndarray) -> None:
        """Blends `ink` into the picture where `mask` (uint8) says, its corner at (y, x)."""
        h, w = mask.shape
        region = self.pixels[y : y + h, x : x + w]
        region += (mask.astype(np.float32) / 255)[:, :, None] * (ink - region)

    def label(self, y: float, x: float, name: str, color: str | None = None) -> None:
        """Labels the cell around the point (y, x)."""
        cell = int(y) // CELL, int(x) // CELL
        self.classes[cell] = CLASSES.index(name)
        if color is not None:
            self.colors[cell] = COLOR_NAMES.index(color)

    def frame(self, rng: random.Random) -> np.ndarray:
        """uint8 [H, W, 3] with pixel noise of a random strength."""
        start = rng.randrange(len(_NOISE) - self.pixels.size)
        noise = _NOISE[start : start + self.pixels.size].reshape(self.pixels.shape)
        noisy: np.ndarray = self.pixels + noise * rng.uniform(0, 10)
        return noisy.clip(0, 255).astype(np.uint8)

    def picture(self, rng: random.Random) -> Media:
        return Media(self.frame(rng)[None], None, self.classes[None], self.colors[None])


def shade(rng: random.Random, low: float, high: float) -> np.ndarray:
    """A random RGB value, each channel in [low, high]."""
    return np.array([rng.uniform(low, high) for _ in range(3)], np.float32)


def tint(rng: random.Random, color: str, jitter: float = 18) -> np.ndarray:
    """A named colour, each channel off by up to `jitter`."""
    value: np.ndarray = np.array(COLORS[color], np.float32) + shade(rng, -jitter, jitter)
    return value


def contrast(rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Ink and paper: dark on light or light on dark."""
    dark, light = shade(rng, 0, 80), shade(rng, 180, 255)
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def shape_mask(rng: random.Random, shape: str, size: int) -> np.ndarray:
    mask: np.ndarray = load().shapes[size][SHAPES.index(shape), rng.randrange(VARIANTS)]
    return mask


def glyph_mask(rng: random.Random, char: str) -> np.ndarray:
    mask: np.ndarray = load().glyphs[CHARS.index(char), rng.randrange(VARIANTS)]
    return mask


def digit_mask(rng: random.Random, index: int) -> np.ndarray:
    """The handwritten digit `index` on CELL x CELL pixels, slightly rotated, sheared and scaled."""
    source = np.zeros((10, 10), np.float64)
    source[1:9, 1:9] = load().digits[index] / 16
    angle, shear, scale = rng.uniform(-0.15, 0.15), rng.uniform(-0.15, 0.15), 8 / rng.uniform(13, 16)
    offset = (np.arange(CELL) - (CELL - 1) / 2) * scale
    dy, dx = offset[:, None] + rng.uniform(-0.3, 0.3), offset[None, :] + rng.uniform(-0.3, 0.3)
    y = np.clip(4.5 + dy + angle * dx, 0, 8.999)
    x = np.clip(4.5 + dx - (angle + shear) * dy, 0, 8.999)
    y0, x0 = y.astype(int), x.astype(int)
    fy, fx = y - y0, x - x0
    top = source[y0, x0] * (1 - fx) + source[y0, x0 + 1] * fx
    bottom = source[y0 + 1, x0] * (1 - fx) + source[y0 + 1, x0 + 1] * fx
    mask: np.ndarray = np.rint((top * (1 - fy) + bottom * fy) * 255)
    return mask.astype(np.uint8)
