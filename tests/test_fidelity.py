"""Distances between distributions, against scipy and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr

from bench import fidelity
from bench.accuracy import Observation
from bench.fidelity import compare, read_record, record, write_record
from bench.tasks import Item
from engines.errors import UserError
from tests.fakes import NumberProcessor, TableSession

RNG = np.random.default_rng(0)
TABLE = RNG.normal(0, 2, (12, 12))
NEAR = TABLE + RNG.normal(0, 0.5, (12, 12))
ITEMS = [
    Item.make("t", [{"role": "user", "content": text}], "x", 0.0)
    for text in ("1 2 3", "4 5", "6 7 8 9", "2 2")
]
ANSWERS = [(5, 6), (0,), (7, 8, 9), (1, 4)]
BEFORE = [3, 5, 5, 9, 7, 8, 2, 1]  # the token before each token of the answers


def observed(right: list[bool]) -> list[Observation]:
    return [
        Observation(item.id, "t", "x", "x", ok, 0.0, answer, float(ok))
        for item, answer, ok in zip(ITEMS, ANSWERS, right, strict=True)
    ]


def recorded(table: Any, batch_size: int = 2) -> dict[str, Any]:
    session: Any = TableSession(table)
    processor: Any = NumberProcessor()
    return record(session, processor, ITEMS, observed([True] * 4), batch_size)


def test_record_follows_the_answer() -> None:
    """Answer 5, 6 of prompt 1 2 3: distributions after 3 and after 5."""
    found = recorded(TABLE)
    assert list(found) == [item.id for item in ITEMS]
    for item, last, answer in zip(ITEMS, (3, 5, 9, 2), ANSWERS, strict=True):
        assert np.allclose(found[item.id], log_softmax(TABLE[[last, *answer[:-1]]], axis=-1), atol=1e-5)


def test_batching_changes_nothing() -> None:
    one, all_at_once = recorded(TABLE, 1), recorded(TABLE, 4)
    assert all(np.array_equal(one[key], all_at_once[key]) for key in one)


def test_compare_equals_scipy() -> None:
    found = compare(
        recorded(TABLE), recorded(NEAR), observed([True] * 4), observed([True, False, True, True])
    )
    p, q = (np.exp(log_softmax(table[BEFORE], axis=-1)) for table in (TABLE, NEAR))
    kl = rel_entr(p, q).sum(axis=-1)
    assert (found.items, found.positions, found.answers) == (4, 8, 4)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert found.top1_agreement == np.mean(p.argmax(axis=-1) == q.argmax(axis=-1))
    assert found.answer_flip_rate == 0.25
    assert found.kl_low < found.kl_mean < found.kl_high


def test_equal_models_are_at_distance_zero() -> None:
    same = compare(recorded(TABLE), recorded(TABLE + 3.0), observed([True] * 4), observed([True] * 4))
    assert same.kl_mean == pytest.approx(0, abs=1e-6)
    assert (same.top1_agreement, same.answer_flip_rate) == (1.0, 0.0)


@pytest.mark.parametrize("large", [False, True])
def test_records_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    """Those of a large vocabulary in half the bytes, and still near enough."""
    before = recorded(TABLE)
    if large:
        monkeypatch.setattr(fidelity, "LARGE_VOCABULARY", 4)
    write_record(tmp_path / "r.npz", recorded(TABLE))
    after = read_record(tmp_path / "r.npz")
    assert list(after) == list(before)
    assert {rows.dtype for rows in after.values()} == {np.dtype(np.float16 if large else np.float32)}
    found = compare(before, after, observed([True] * 4), observed([True] * 4))
    assert found.kl_mean < (2e-3 if large else 1e-7)


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.npz").write_bytes(b"not an archive")
    for path in (tmp_path / "r.npz", tmp_path / "none.npz"):
        with pytest.raises(UserError, match="cannot read distributions"):
            read_record(path)


def test_unpaired_records_are_refused() -> None:
    whole, right = recorded(TABLE), observed([True] * 4)
    fewer = {key: whole[key] for key in list(whole)[1:]}
    shorter = {key: rows[:1] for key, rows in whole.items()}
    for candidate in (fewer, shorter, {}):
        with pytest.raises(UserError, match="expected"):
            compare(whole, candidate, right, right)
    with pytest.raises(UserError, match="different items"):
        compare(whole, whole, right, right[1:])
