"""Speculation changes how many passes a text takes, never the text; and it stops where it does not pay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import engines.speculation
from bench.micro.tasks import generate as generate_items
from engines.checkpoint import Checkpoint
from engines.export import export
from engines.onnx_session import OnnxSession
from engines.processor import Inputs, Processor
from engines.sampling import Sampling
from engines.speculation import LOSS, Pace, lookup, tokens
from tests.fakes import TableSession, chain


def prompt(*ids: int) -> Inputs:
    return Inputs.text(ids)


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2, 3], 2, [4, 5]),
        ([1, 2, 3, 4, 9, 1, 2, 3, 5, 1, 2, 3], 2, [5, 1]),  # the latest occurrence
        ([1, 2, 3, 4, 8, 2, 3, 5, 1, 2, 3], 1, [4]),  # three tokens before two, however early
        ([7, 2, 3, 4, 1, 2, 3], 1, [4]),
        ([7, 8, 3, 4, 1, 2, 3], 4, []),  # one token foretells nothing
        ([5, 5, 5, 5], 3, [5, 5, 5]),
        ([1, 2, 1, 2, 1], 4, [2, 1, 2, 1]),  # around a loop
        ([1, 2, 3, 4, 5, 1, 2, 3], 0, []),
        ([1, 2], 3, []),
        ([1], 3, []),
    ],
)
def test_lookup(text: list[int], count: int, expected: list[int]) -> None:
    assert lookup(np.array(text), count).tolist() == expected


@pytest.mark.parametrize("seed", range(30))
def test_lookup_by_its_definition(seed: int) -> None:
    random = np.random.default_rng(seed)
    text = random.integers(0, 5, 40).tolist()
    expected: list[int] = []
    for size in (3, 2):
        starts = [at for at in range(len(text) - size) if text[at : at + size] == text[-size:]]
        if starts:
            longer = list(text)
            while len(longer) < len(text) + 6:
                longer.append(longer[starts[-1] + size + len(longer) - len(text)])
            expected = longer[len(text) :]
            break
    assert lookup(np.array(text), 6).tolist() == expected


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=3), Sampling(2.0, top_p=0.9, seed=4)])
@pytest.mark.parametrize("speculate", [True, None])
def test_tokens_are_those_of_one_at_a_time(sampling: Sampling, speculate: bool | None) -> None:
    table = chain([1, 2, 3, 4, 5, 6, 1], strength=5.0)
    plain, fast = TableSession(table), TableSession(table)
    expected = list(tokens(plain, prompt(1, 2, 3, 4), 60, sampling, False))
    found = list(tokens(fast, prompt(1, 2, 3, 4), 60, sampling, speculate))
    assert [token for token, _ in found] == [token for token, _ in expected]
    assert not any(drafted for _, drafted in expected)
    assert set(plain.extended) == {1}
    if speculate:
        assert len(fast.extended) < 59
        assert sum(drafted for _, drafted in found) == 59 - len(fast.extended)


def test_a_draft_ends_with_the_text() -> None:
    session = TableSession(chain([0] * 2))
    assert len(list(tokens(session, prompt(0, 0, 0), 12, Sampling(), True))) == 12
    assert session.extended == [8, 3]  # after the first token


@pytest.fixture(scope="module")
def session(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> OnnxSession:
    out = tmp_path_factory.mktemp("speculation") / "artifact"
    export(Checkpoint.open(micro_checkpoint), out)
    return OnnxSession(out, threads=1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.2, top_p=0.95, seed=7)])
def test_a_trained_model_says_the_same(session: OnnxSession, sampling: Sampling) -> None:
    processor = Processor.load(Path("bench/micro/checkpoint"))
    prompts = [processor(item.messages) for item in generate_items("test", 60, 11)]
    assert {media.kind for inputs in prompts for media in inputs.media} == {"image", "video"}
    drafted = 0
    for inputs in prompts:
        expected = [token for token, _ in tokens(session, inputs, 24, sampling, False)]
        found = list(tokens(session, inputs, 24, sampling, True))
        assert [token for token, _ in found] == expected
        drafted += sum(free for _, free in found)
    assert drafted > 100


def decode(pace: Pace, passes: int, cost: float, chance: float, longest: int = 7) -> float:
    """Steps saved, as a part of the plain steps that the same tokens take."""
    random, spent, said = np.random.default_rng(0), 0.0, 0
    for _ in range(passes):
        size = pace.draft_size(longest)
        accepted = int(np.argmin(np.append(random.random(size) < chance, False)))
        seconds = 0.05 * (1 + cost * size)
        pace.record(seconds, size, accepted)
        spent, said = spent + seconds / 0.05, said + 1 + accepted
    return (said - spent) / said


@pytest.mark.parametrize("cost", [0.1, 0.3, 0.5, 2.0])
@pytest.mark.parametrize("chance", [0.0, 0.1, 0.3])
def test_failing_drafts_cost_what_is_allowed(cost: float, chance: float) -> None:
    assert decode(Pace(), 400, cost, chance) > -LOSS - 0.005


@pytest.mark.parametrize(("cost", "chance", "least"), [(0.3, 0.9, 0.35), (0.3, 1.0, 0.5), (0.1, 0.8, 0.5)])
def test_good_drafts_pay(cost: float, chance: float, least: float) -> None:
    assert decode(Pace(), 100, cost, chance) > least


def test_drafts_return_when_text_repeats_again() -> None:
    pace = Pace()
    decode(pace, 300, cost=0.4, chance=0.0)
    assert decode(pace, 150, cost=0.4, chance=1.0) > 0.3


def test_the_first_pass_is_the_measure() -> None:
    assert Pace().draft_size(7) == 0


def test_costs_are_read_from_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass of eight that takes forty steps is not tried again while the account is empty."""
    now = [0.0]

    class Slow(TableSession):
        def extend(self, tokens: np.ndarray, cache: object) -> np.ndarray:
            now[0] += 1.0 if tokens.shape[1] == 1 else 40.0
            return super().extend(tokens, cache)  # type: ignore[arg-type]

    class Clock:
        perf_counter = staticmethod(lambda: now[0])

    monkeypatch.setattr(engines.speculation, "time", Clock)
    session = Slow(chain([1, 2, 3, 1]))
    list(tokens(session, prompt(1, 2, 3, 1, 2, 3), 100, Sampling(), None))
    assert sum(size > 1 for size in session.extended) == 1
