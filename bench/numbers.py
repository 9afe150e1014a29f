"""Numbers on the command line, as argparse takes them: what is none of them is a usage error."""

from __future__ import annotations

import argparse


def positive(text: str) -> int:
    """1, 2, 3 …"""
    return _at_least(text, 1)


def natural(text: str) -> int:
    """0, 1, 2 …"""
    return _at_least(text, 0)


def two(text: str) -> int:
    """2, 3, 4 …"""
    return _at_least(text, 2)


def above_zero(text: str) -> float:
    """Any finite number above 0."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")
    return found


def likely(text: str) -> float:
    """A chance of more than a half."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.5 < found < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a chance between 0.5 and 1")
    return found


def _at_least(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least {least}")
    return int(text)
