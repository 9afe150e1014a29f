"""Long text and long talks: needles found again, what a passage says, what was said some turns ago."""

from __future__ import annotations

import json
import random
from functools import partial

from bench.suites import prose
from bench.suites.items import Make, ask
from bench.tasks import Item, Message

DECOYS = 3  # codes of other places, so that any number in the text is not the answer


def one_needle(rng: random.Random, task: str, tokens: int) -> Item:
    """A code told once in a text of about so many tokens, among codes of others."""
    found = prose.needles(rng, 1 + DECOYS)
    text = prose.passage(rng, tokens, [sentence for sentence, _, _ in found])
    question = f"{text}\n\nWhat is the access code of {found[0][1]}? Answer with the number only."
    return Item.make(task, ask(question), found[0][2], 0.0, "count")


def many_needles(rng: random.Random, task: str = "needles", tokens: int = 1000) -> Item:
    """Four codes, all asked for; the score is the share told."""
    found = prose.needles(rng, 4)
    text = prose.passage(rng, tokens, [sentence for sentence, _, _ in found])
    names = ", ".join(name for _, name, _ in found)
    question = (
        f"{text}\n\nWhat are the access codes of {names}? Answer with the four numbers, separated by commas."
    )
    return Item.make(task, ask(question), json.dumps([number for _, _, number in found]), 0.0, "recall")


def extract(rng: random.Random, task: str = "extract", tokens: int = 500) -> Item:
    """Who did something or to what, in the words of the passage."""
    who, did, what = rng.choice(prose.WHO), rng.choice(prose.DID), rng.choice(prose.WHAT)
    day = f"{rng.randint(1, 28)} {rng.choice(('March', 'June', 'August', 'November'))}"
    fact = f"On {day}, {who} {did} {what} {rng.choice(prose.WHY)}."
    asked, right = rng.choice(
        ((f"Who {did} {what} on {day}?", who), (f"What was {did} by {who} on {day}?", what))
    )
    passage = prose.passage(rng, tokens, [fact])
    question = f"{passage}\n\n{asked} Answer with words of the text only, as few as will do."
    return Item.make(task, ask(question), right, 0.0, "token_f1")


# What a user tells early on: as it is said, the like said of others, as it is asked for, what it may be.
TOLD = (
    (
        "By the way, my dog is called {}.",
        "My neighbour's is called {}.",
        "What is my dog called?",
        ("Biscuit", "Juno", "Pepper", "Otto", "Willow", "Rufus"),
    ),
    (
        "I am writing to you from {}.",
        "My aunt lives in {}.",
        "Where am I writing from?",
        ("Bergen", "Lisbon", "Osaka", "Quito", "Tartu", "Perth"),
    ),
    (
        "My train leaves at {}.",
        "The ferry sails at {}.",
        "When does my train leave?",
        ("7:15", "9:40", "11:05", "14:20", "16:55", "18:30"),
    ),
    (
        "My sister studies {}.",
        "Her friend studies {}.",
        "What does my sister study?",
        ("geology", "law", "botany", "music", "history", "physics"),
    ),
)


def memory(rng: random.Random) -> Item:
    """Told in one of the first turns, asked for in the last; the like is told of others in between."""
    say, other, asked, choices = rng.choice(TOLD)
    right, wrong = rng.sample(choices, 2)
    talk: list[Message] = []
    told = rng.randint(0, 2)
    for turn in range(rng.randint(4, 7)):
        remark = prose.sentence(rng)
        if turn == told:
            remark = f"{remark} {say.format(right)}"
        elif turn == told + 1:
            remark = f"{remark} {other.format(wrong)}"
        talk += [{"role": "user", "content": remark}, {"role": "assistant", "content": "I see. Go on."}]
    talk.append({"role": "user", "content": f"{asked} Answer with one word or time only."})
    return Item.make("memory", talk, right, 1 / len(choices), "words")


LONG = {"needle": one_needle, "needles": many_needles, "extract": extract}


def long_task(kind: str, thousands: int) -> Make:
    """One of these in so many thousand tokens."""
    return partial(LONG[kind], task=f"{kind}-{thousands}k", tokens=1000 * thousands)


TASKS: dict[str, Make] = {
    "needle-1k": long_task("needle", 1),
    "needle-2k": long_task("needle", 2),
    "needles": many_needles,
    "extract": extract,
    "memory": memory,
}
