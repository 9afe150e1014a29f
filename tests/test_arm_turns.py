"""Clients take turns: many requests of one do not hold up those of another."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from serve.arm.turns import Client, Gate, Turns

A, B = Client("10.0.0.1"), Client("10.0.0.2")
BOB, EVE = Client("10.0.0.2", "bob"), Client("10.0.0.2", "eve")


def taken(turns: Turns[str]) -> list[str]:
    return [turns.take() for _ in range(len(turns))]


def test_each_address_has_its_turn_and_each_user_of_it() -> None:
    turns: Turns[str] = Turns()
    for number in range(5):
        turns.put(A, f"a{number}")
    for number in range(3):
        turns.put(BOB, f"bob{number}")
    turns.put(EVE, "eve0")
    assert turns.first() == "a0"
    assert taken(turns) == ["a0", "bob0", "a1", "eve0", "a2", "bob1", "a3", "bob2", "a4"]
    assert turns.first() is None


def test_who_comes_back_goes_to_the_end() -> None:
    """Somebody who asks one thing after the other takes no more turns than somebody who asked all at once."""
    turns: Turns[str] = Turns()
    for number in range(3):
        turns.put(A, f"a{number}")
    turns.put(B, "b0")
    order = []
    for number in range(1, 6):
        order.append(turns.take())
        if order[-1].startswith("b"):
            turns.put(B, f"b{number}")
    assert order == ["a0", "b0", "a1", "b2", "a2"]


def test_what_is_dropped_takes_no_turn() -> None:
    turns: Turns[str] = Turns()
    for item in ("a0", "a1", "a2"):
        turns.put(A, item)
    turns.put(BOB, "bob0")
    turns.put(EVE, "eve0")
    turns.drop(lambda item: item in ("a0", "bob0"))
    assert len(turns) == 3
    assert taken(turns) == ["a1", "eve0", "a2"]


@pytest.mark.parametrize("seed", range(5))
def test_nobody_waits_longer_than_a_turn_of_everybody(seed: int) -> None:
    """Whatever comes and goes: between two turns of one who waits, no other has two."""
    random, turns = np.random.default_rng(seed), Turns[tuple[str, int]]()
    clients = [Client(str(at)) for at in range(6)]
    since: dict[str, list[str]] = {}
    for number in range(2000):
        if random.random() < 0.5:
            client = clients[random.integers(6) if random.random() < 0.5 else 0]
            turns.put(client, (client.address, number))
            since.setdefault(client.address, [])
        elif turns:
            who, _ = turns.take()
            assert len(set(since[who])) == len(since[who]) <= 5
            for others in since.values():
                others.append(who)
            since[who] = []
            if not any(waiting == who for waiting, _ in turns):
                del since[who]


def test_places_are_given_in_turn() -> None:
    order: list[str] = []

    async def visit(gate: Gate, client: Client, name: str) -> None:
        with await gate.enter(client):
            order.append(name)
            await asyncio.sleep(0)

    async def run() -> None:
        gate = Gate(1)
        names = [*((A, f"a{number}") for number in range(4)), (B, "b0"), (B, "b1")]
        await asyncio.gather(*(visit(gate, client, name) for client, name in names))

    asyncio.run(run())
    assert order == ["a0", "a1", "b0", "a2", "b1", "a3"]


def test_who_leaves_gives_up_a_place_and_a_turn() -> None:
    async def run() -> list[bool]:
        gate = Gate(1)
        first = await gate.enter(A)
        waiting = [asyncio.create_task(gate.enter(client)) for client in (A, B, BOB, EVE)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.sleep(0)
        first.close()
        first.close()  # gives back one place, not two
        waiting[0].cancel()  # in the moment that it gets the place
        done, _ = await asyncio.wait(waiting, timeout=0.2)
        assert waiting[2] in done
        (await waiting[2]).close()
        (await waiting[3]).close()
        return [task.cancelled() for task in waiting]

    assert asyncio.run(run()) == [True, True, False, False]
