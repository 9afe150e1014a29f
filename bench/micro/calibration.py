"""`python -m bench.micro.calibration` writes the packaged calibration set: items which test never asks."""

from __future__ import annotations

from pathlib import Path

from bench.micro.tasks import generate
from bench.tasks import write_items

PATH = Path(__file__).resolve().parents[2] / "quantize" / "calibration.jsonl"
ITEMS, SEED = 128, 0


def main() -> None:
    write_items(PATH, generate("calibration", ITEMS, SEED))
    print(f"{PATH}: {ITEMS} items, {PATH.stat().st_size} bytes")


if __name__ == "__main__":
    main()
