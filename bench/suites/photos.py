"""Real pictures that scikit-image and scikit-learn ship, asked for what their data sets say they are."""

from __future__ import annotations

import functools
import gzip
import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from bench.suites.drawing import package
from bench.suites.items import Make, ask
from bench.tasks import Item

# File of the package -> what its documentation says it shows.
SUBJECTS = {
    "skimage/data/astronaut.png": "an astronaut",
    "skimage/data/brick.png": "a brick wall",
    "skimage/data/camera.png": "a man with a camera",
    "skimage/data/chelsea.png": "a cat",
    "skimage/data/coffee.png": "a cup of coffee",
    "skimage/data/coins.png": "coins",
    "skimage/data/grass.png": "grass",
    "skimage/data/gravel.png": "gravel",
    "skimage/data/horse.png": "a horse in silhouette",
    "skimage/data/hubble_deep_field.jpg": "distant galaxies",
    "skimage/data/ihc.png": "stained tissue under a microscope",
    "skimage/data/moon.png": "the surface of the Moon",
    "skimage/data/motorcycle_left.png": "a motorcycle",
    "skimage/data/page.png": "a page of printed text",
    "skimage/data/retina.jpg": "the retina of an eye",
    "skimage/data/rocket.jpg": "a rocket",
    "sklearn/datasets/images/china.jpg": "a Chinese temple",
    "sklearn/datasets/images/flower.jpg": "a flower",
}
PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
FACES = 100  # of scikit-image's LFW patches the first hundred are faces, the others are not
PATCHES = 6
DIGITS = 3


def subject(rng: random.Random) -> Item:
    """One of four subjects; the photograph is cropped, mirrored and lit anew."""
    files = rng.sample(list(SUBJECTS), 4)
    right = rng.randrange(4)
    picture = _photograph(files[right])
    width, height = (round(side * rng.uniform(0.75, 1)) for side in picture.size)
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    scale = rng.randint(416, 640) / max(width, height)
    shown = picture.crop((left, top, left + width, top + height))
    shown = shown.resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)
    if rng.random() < 0.5 and "page" not in files[right]:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    shown = ImageEnhance.Brightness(shown).enhance(rng.uniform(0.8, 1.2))
    options = "\n".join(f"{letter}. {SUBJECTS[file]}" for letter, file in zip("ABCD", files, strict=True))
    question = f"What does the picture show?\n{options}\nAnswer with its letter only."
    return Item.make("photo-subject", ask(question, shown), "ABCD"[right], 1 / 4, "choice")


def digits(rng: random.Random) -> Item:
    """Three handwritten digits in a row, of three writers."""
    table = _digits()
    rows = [table[rng.randrange(len(table))] for _ in range(DIGITS)]
    if rows[0][-1] == 0:  # a number does not begin with it
        rows.reverse()
    ink = np.concatenate([np.pad(row[:-1].reshape(8, 8), 1) for row in rows], axis=1) * 16
    shown = Image.fromarray((255 - ink.clip(0, 255)).astype(np.uint8)).convert("RGB")
    shown = shown.resize((24 * 10 * DIGITS, 24 * 10), Image.Resampling.BICUBIC)
    number = "".join(str(int(row[-1])) for row in rows)
    question = "Which number of three digits is written here? Answer with the digits only."
    return Item.make("photo-digit", ask(question, shown), number, 10.0**-DIGITS, "count")


def faces(rng: random.Random) -> Item:
    """How many of six grey patches are faces, all numbers as likely."""
    patches = _patches()
    number = rng.randint(0, PATCHES)
    chosen = rng.sample(range(FACES), number) + rng.sample(range(FACES, len(patches)), PATCHES - number)
    rng.shuffle(chosen)
    sheet = Image.new("RGB", (3 * 168 + 8, 2 * 168 + 8), "white")
    for place, i in enumerate(chosen):
        patch = Image.fromarray((255 * patches[i]).astype(np.uint8)).resize(
            (160, 160), Image.Resampling.BICUBIC
        )
        sheet.paste(patch, (8 + place % 3 * 168, 8 + place // 3 * 168))
    question = "How many of these six pictures show a human face? Answer with a number only."
    return Item.make("photo-face", ask(question, sheet), str(number), 1 / (PATCHES + 1), "count")


def _photograph(file: str) -> Image.Image:
    """RGB on white."""
    module, _, rest = file.partition("/")
    with Image.open(package(module, PACKAGES[module]) / rest) as opened:
        whole = opened.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole).convert("RGB")


@functools.cache
def _digits() -> NDArray[np.float64]:
    """[1797, 65]: 64 levels from 0 to 16 and the digit."""
    with gzip.open(package("sklearn", "scikit-learn") / "datasets/data/digits.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")


@functools.cache
def _patches() -> NDArray[np.float64]:
    """[200, 25, 25] from 0 to 1."""
    return np.asarray(np.load(package("skimage", "scikit-image") / "data/lfw_subset.npy"), np.float64)


TASKS: dict[str, Make] = {"photo-subject": subject, "photo-digit": digits, "photo-face": faces}
