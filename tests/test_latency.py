"""What is measured, in which order, and how it is laid out; never how long it takes."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import arms as timed
from bench import latency
from bench.arms import Arm, Stamps, here, in_a_process
from bench.gate import Limits, Measurements, gate
from bench.latency import AGAIN, Timing, measure, of_arm, order, summarize, table
from bench.records import read_records, write_records
from engines.errors import UserError
from engines.processor import Processor
from tests.fakes import END, NumberProcessor, TableSession, chain

ARMS = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SETTLE_S", 0.0)


def requests(n: int) -> list[Any]:
    return [NumberProcessor()([{"content": "1 2 3" + " 1" * i}]) for i in range(n)]


def sessions(arms: list[str] = ARMS) -> dict[str, Any]:
    """All of them end their answer at once."""
    return {arm: TableSession(chain([END] * 4)) for arm in arms}


def arms(models: dict[str, Any]) -> dict[str, Arm]:
    return {arm: here(session) for arm, session in models.items()}


def test_order_is_mirrored_and_rotated() -> None:
    assert [arm for _, _, arm in order(ARMS, 2, 2)] == list("abccba" + "bcaacb")


def test_every_arm_has_every_place_equally_often() -> None:
    """Then linear drift, whatever its sign, adds the same to every arm."""
    at = list(order(ARMS, 3, 2))
    assert Counter((request, repeat, arm) for request, repeat, arm in at) == Counter(
        (i, j, arm) for i in range(3) for j in range(2) for arm in ARMS
    )
    mean = {arm: np.mean([place for place, (_, _, who) in enumerate(at) if who == arm]) for arm in ARMS}
    assert len(set(mean.values())) == 1


def test_all_arms_do_equal_work_past_the_end_of_the_answer() -> None:
    models = sessions()
    rows = measure(arms(models), requests(4), output_tokens=5, repeats=3, warmup=2)
    assert len(rows) == 3 * 4 * 3
    assert {row.output_tokens for row in rows} == {5}
    for session in models.values():
        assert (
            session.decoded == (4 * 3 + 2) * 4
        )  # four after the first token, for 12 answers and 2 of warm-up
        assert session.batches[:2] == [[3], [4]]


def test_every_picture_is_new_to_every_arm() -> None:
    """Or the second repeat would be spared what the first request about a picture costs."""
    models = sessions()
    measure(arms(models), requests(4), output_tokens=2, repeats=3, warmup=2)
    assert [session.forgotten for session in models.values()] == [4 * 3 + 2] * 3


def scripted(*scales: float) -> Arm:
    """Takes 30 ms for vision, 70 for the rest of the first token and 50 for each further one, times one of
    the scales in turn."""
    scale = cycle(scales)

    def answer(prompts: Sequence[Any], count: int) -> Stamps:
        s = next(scale) / 1e3
        return Stamps(1.0, [1.0 + s * (100 + 50 * i) for i in range(count)], 30 * s)

    return answer


def test_phases_are_told_apart() -> None:
    row = measure({"a": scripted(1.0)}, requests(1), output_tokens=3, repeats=1)[0]
    found = (row.ttft_ms, row.vision_ms, row.prefill_ms, row.itl_ms, row.e2e_latency_ms)
    assert found == pytest.approx((100, 30, 70, 50, 200))


def test_batches_are_requests_together() -> None:
    """Five requests in twos: two batches, the fifth is left over. By hand: 2 x 3 tokens in 200 ms."""
    rows = measure({"a": scripted(1.0)}, requests(5), output_tokens=3, repeats=2, batches=(1, 2))
    pairs = [row for row in rows if row.batch == 2]
    assert [(row.request, row.repeat, row.prompt_tokens) for row in pairs] == [
        (0, 0, 3 + 4),
        (0, 1, 3 + 4),
        (1, 0, 5 + 6),
        (1, 1, 5 + 6),
    ]
    assert pairs[0].output_tokens_per_s == pytest.approx(30)
    assert table(of_arm(rows, "a"), "ttft_ms").shape == (5, 2)  # one at a time, all of them


def test_all_is_repeated_until_it_is_steady() -> None:
    looks: list[int] = []

    def steady(timings: Sequence[Timing]) -> bool:
        looks.append(len(timings))
        return len(looks) == 2

    rows = measure(
        {"a": scripted(1.0)}, requests(3), repeats=2, batches=(1, 3), most_repeats=8, steady=steady
    )
    assert looks == [6 + 2, 12 + 2]  # batches only once
    assert table(of_arm(rows, "a"), "ttft_ms").shape == (3, 4)
    endless = measure({"a": scripted(1.0)}, requests(3), repeats=2, most_repeats=6, steady=lambda rows: False)
    assert table(endless, "ttft_ms").shape == (3, 6)


@pytest.mark.parametrize(
    ("again", "candidate", "verdict"),
    [
        ((1.0,), (1.0,), "PASS"),
        ((1.0,), (1.3,), "FAIL"),
        ((1.3,), (1.3,), "INCONCLUSIVE"),  # the second process of the baseline is slower: so may any be
        ((0.5, 0.5, 2.0, 2.0), (1.0,), "INCONCLUSIVE"),
        ((0.5, 0.5, 2.0, 2.0), (9.0,), "INCONCLUSIVE"),
    ],
)
def test_planted_arms_get_their_verdict(
    again: tuple[float, ...], candidate: tuple[float, ...], verdict: str
) -> None:
    planted = {"a": scripted(1.0), "a" + AGAIN: scripted(*again), "b": scripted(*candidate)}
    rows = measure(planted, requests(12), output_tokens=3, repeats=2, warmup=0)
    limits = Limits(accuracy_margin=None, itl_p50_ratio=1.15, max_bytes=None, max_peak_memory_bytes=None)
    sides = [of_arm(rows, arm) for arm in planted]
    judged = gate(
        Measurements("a", "b", baseline_timings=sides[0], again_timings=sides[1], candidate_timings=sides[2]),
        limits,
    )
    assert [check.verdict for check in judged.checks] == [verdict] * 3


def test_figures_follow_from_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts 0, 1, 4, 9, 16 ... ms: first token after 1, then 3, 5, 7."""
    ticks = iter(i * i / 1e3 for i in range(1000))
    monkeypatch.setattr(timed.time, "perf_counter", lambda: next(ticks))
    row = measure(arms(sessions(["a"])), requests(1), output_tokens=4, repeats=1, warmup=0)[0]
    assert (row.ttft_ms, row.itl_ms, row.e2e_latency_ms) == pytest.approx((1, 5, 16))
    assert row.output_tokens_per_s == pytest.approx(4 / 0.016)
    assert row.prompt_tokens == 3


def test_garbage_is_left_alone_while_measuring_and_collected_again_after() -> None:
    seen: list[bool] = []
    measure(
        arms(sessions()),
        requests(1),
        output_tokens=2,
        progress=lambda done, total: seen.append(gc.isenabled()),
    )
    assert seen == [False] * 6
    assert gc.isenabled()


def test_progress_counts_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    measure(arms(sessions(["a"])), requests(2), output_tokens=2, progress=lambda *at: seen.append(at))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_one_token_has_no_time_between_tokens() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        measure(arms(sessions()), requests(1), output_tokens=1)


def rows() -> list[Timing]:
    return [Timing("a", i, j, 3, 4, 10 * i + j, 2.0, 3.0, 4.0) for j in range(2) for i in range(3)]


def test_table_is_requests_by_repeats() -> None:
    assert table(rows(), "ttft_ms").tolist() == [[0, 1], [10, 11], [20, 21]]


@pytest.mark.parametrize("bad", [[], rows()[:-1], [*rows(), rows()[0]], rows()[1:]])
def test_a_table_has_no_holes_and_no_doubles(bad: list[Timing]) -> None:
    with pytest.raises(ValueError, match="expected one of each"):
        table(bad, "ttft_ms")


def test_summary_by_arm() -> None:
    both = [*rows(), *(replace(row, arm="b", ttft_ms=row.ttft_ms * 2) for row in rows())]
    found = summarize(both)
    assert found["a"]["ttft_ms"] == {
        "p50": 10.5,
        "p95": pytest.approx(np.quantile([0, 1, 10, 11, 20, 21], 0.95)),
        "p99": pytest.approx(np.quantile([0, 1, 10, 11, 20, 21], 0.99)),
    }
    assert found["b"]["ttft_ms"]["p50"] == 21
    assert of_arm(both, "a") == rows()


def test_timings_come_back(tmp_path: Path) -> None:
    write_records(tmp_path / "t.jsonl", rows())
    assert read_records(tmp_path / "t.jsonl", Timing) == rows()
    (tmp_path / "t.jsonl").write_text('{"arm": "a"}\n')
    with pytest.raises(UserError, match=r"t\.jsonl:1: request"):
        read_records(tmp_path / "t.jsonl", Timing)


def test_an_arm_in_a_process_of_its_own_answers_as_one_here(micro_checkpoint: Path) -> None:
    inputs = Processor.load(micro_checkpoint)([{"role": "user", "content": "Code of Zafolo?"}])
    with in_a_process(micro_checkpoint) as answer:
        rows = measure({"a": answer}, [inputs], output_tokens=3, repeats=2, warmup=1)
        assert multiprocessing.active_children()
    assert [(row.prompt_tokens, row.output_tokens) for row in rows] == [(len(inputs.input_ids), 3)] * 2
    assert all(0 < row.ttft_ms < row.e2e_latency_ms for row in rows)
    assert not multiprocessing.active_children()


def test_an_arm_that_cannot_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has neither"), in_a_process(tmp_path):
        pass


def test_an_arm_that_dies_is_told_of(micro_checkpoint: Path) -> None:
    inputs = Processor.load(micro_checkpoint)([{"role": "user", "content": "Code of Zafolo?"}])
    with in_a_process(micro_checkpoint) as answer:
        multiprocessing.active_children()[0].kill()
        with pytest.raises(UserError, match=r"killed \(signal 9\)"):
            answer([inputs], 2)


def test_ctrl_c_ends_an_arm_without_a_word(micro_checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The terminal interrupts both processes; the one that was started leaves the telling to the other."""
    with in_a_process(micro_checkpoint):
        (process,) = multiprocessing.active_children()
        assert process.pid
        os.kill(process.pid, signal.SIGINT)
        process.join(60)
        assert process.exitcode == -signal.SIGINT
    assert capfd.readouterr().err == ""
