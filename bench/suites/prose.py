"""Sentences that mean nothing in particular, and the facts hidden among them."""

from __future__ import annotations

import random

from bench.suites.items import code

CHARACTERS_PER_TOKEN = 4.3  # of this English in Qwen's tokens, about

WHEN = (
    "In spring", "Last winter", "On most Mondays", "After the storm", "Before noon",
    "During the fair", "At low tide", "That year",
)  # fmt: skip
WHO = (
    "the ferry company", "a retired teacher", "the town council", "our neighbour",
    "the post office", "a small theatre", "the gardeners", "two engineers", "the library",
    "a group of students", "the night watch", "the baker",
)  # fmt: skip
DID = (
    "repaired", "counted", "painted", "sold", "borrowed", "measured", "moved", "catalogued",
    "inspected", "photographed",
)  # fmt: skip
WHAT = (
    "the wooden pier", "several crates of tea", "the old lanterns", "a row of benches",
    "the bell tower", "forty bicycles", "the market stalls", "a map of the river", "the greenhouse",
    "three rowing boats", "the clock", "the school piano",
)  # fmt: skip
WHY = (
    "because the inspector had asked for it", "to make room for the orchestra",
    "although nobody had noticed", "with help from the fire brigade", "as the newspaper reported",
    "and went home early", "in spite of the rain", "for the first time in years",
    "without telling the mayor", "while the ferry was waiting",
)  # fmt: skip
OWNERS = (
    "amber", "silver", "crimson", "ivory", "cobalt", "jade", "copper", "scarlet", "violet",
    "golden",
)  # fmt: skip
VAULTS = (
    "lighthouse", "archive", "greenhouse", "observatory", "boathouse", "windmill", "cellar",
    "pavilion", "foundry", "chapel",
)  # fmt: skip


def sentence(rng: random.Random) -> str:
    return f"{rng.choice(WHEN)}, {rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHAT)} {rng.choice(WHY)}."


def needle(rng: random.Random) -> tuple[str, str, str]:
    """A sentence that tells a code, whose it is, and the code."""
    name, number = f"the {rng.choice(OWNERS)} {rng.choice(VAULTS)}", code(rng)
    return f"The access code of {name} is {number}.", name, number


def needles(rng: random.Random, n: int) -> list[tuple[str, str, str]]:
    """As many with different names and codes."""
    found: dict[str, tuple[str, str, str]] = {}
    while len(found) < n:
        one = needle(rng)
        if one[2] not in [other[2] for other in found.values()]:
            found[one[1]] = one
    return list(found.values())


def passage(rng: random.Random, tokens: int, hidden: list[str]) -> str:
    """About as many tokens of sentences with the hidden ones among them, at random depths."""
    sentences: list[str] = []
    length = sum(len(one) + 1 for one in hidden)
    while length < tokens * CHARACTERS_PER_TOKEN:
        sentences.append(sentence(rng))
        length += len(sentences[-1]) + 1
    for one in hidden:
        sentences.insert(rng.randint(0, len(sentences)), one)
    return " ".join(sentences)
