"""Parsers of what others wrote: valid inputs pass, those that once broke one are refused with a line.

`python -m tests.fuzz` seeks more of them.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from engines.errors import UserError
from tests.fuzz.parsers import PARSERS, attempt
from tests.fuzz.seeds import SEEDS, found, seeds

CASES = [(name, path) for name in PARSERS for path in found(name)]
MUTATIONS = 40


def test_every_parser_has_seeds() -> None:
    assert PARSERS.keys() == SEEDS.keys()


@pytest.mark.parametrize("name", sorted(PARSERS.keys() - {"index"}))
def test_seeds_are_valid(name: str) -> None:
    for content in seeds(name):
        PARSERS[name](content)


@pytest.mark.parametrize(("name", "path"), CASES, ids=[f"{name}-{path.name}" for name, path in CASES])
def test_what_once_broke_a_parser_is_refused(name: str, path: Path) -> None:
    attempt(name, path.read_bytes())


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_inputs_are_refused_with_a_line(name: str) -> None:
    chance = random.Random(name)
    for content in seeds(name):
        for _ in range(MUTATIONS):
            damaged = bytearray(content)
            for _ in range(chance.randint(1, 8)):
                at = chance.randrange(len(damaged))
                damaged[at : at + chance.choice((0, 1, 4))] = chance.choice(
                    (b"", b"\0", b"\xff", b"[", b"{", b"9" * 20, b"-1", bytes(damaged[: at // 2]))
                )
            attempt(name, bytes(damaged))


def test_an_error_quotes_in_one_line_and_moves_no_cursor() -> None:
    assert str(UserError("no a\nb\x1b[2Jc é 漢")) == r"no a\nb\x1b[2Jc é 漢"
