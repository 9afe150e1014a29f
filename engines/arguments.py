"""What the command lines have in common: numbers within bounds, and a sentence for every command."""

from __future__ import annotations

import argparse
from math import inf
from typing import Any


def describe(commands: Any) -> None:
    """Gives the `--help` of each command the sentence that stands beside its name in the list of commands."""
    for listed in commands._choices_actions:
        command: argparse.ArgumentParser = commands.choices[listed.dest]
        command.description = f"{listed.help[:1].upper()}{listed.help[1:]}."


def positive(text: str) -> int:
    return _whole(text, 1)


def natural(text: str) -> int:
    return _whole(text, 0)


def two(text: str) -> int:
    return _whole(text, 2)


def above_zero(text: str) -> float:
    return _between(text, 0, inf, "a number above 0")


def likely(text: str) -> float:
    return _between(text, 0.5, 1, "a chance between 0.5 and 1")


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least {least}")
    return int(text)


def _between(text: str, low: float, high: float, expected: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = low
    if not low < found < high:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
    return found
