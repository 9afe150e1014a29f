"""`python -m bench` as a user meets it: figures with their intervals, exit codes, one line for bad input."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import commands, comparison, timing
from bench.__main__ import main
from bench.accuracy import read_observations
from bench.gate import Gate
from bench.resources import Memory
from bench.stored import digest
from bench.tasks import Item, write_items
from engines.errors import UserError
from engines.processor import Processor
from tests.fakes import END, NumberProcessor, TableSession, chain

RIGHT = [END, 2, 3, END, 5, END]
WRONG = [END, 5, 3, END, 5, END]  # 1 is followed by 5 instead of 2
SMALL = ["--requests", "8", "--repeats", "1", "--output-tokens", "2", "--warmup", "0"]


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """200 different prompts; those that end in 1 are answered 2 3, those that end in 4 are answered 5."""
    items = []
    for i in range(200):
        prompt = " ".join("23"[int(bit)] for bit in f"{i:b}") + (" 1" if i % 2 else " 4")
        answer = "2 3" if i % 2 else "5"
        items.append(Item.make(f"ends in {prompt[-1]}", [{"role": "user", "content": prompt}], answer, 0.0))
    write_items(tmp_path / "suite.jsonl", items)
    return tmp_path / "suite.jsonl"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Folders that open as table models: same and worse beside the baseline."""
    tables = {"base": RIGHT, "same": RIGHT, "worse": WRONG}

    def open_fake(directory: Path, *, threads: int | None = None) -> Any:
        if directory.name not in tables:
            raise UserError(f"{directory} is no model")
        return TableSession(chain(tables[directory.name]))

    for module in (commands, comparison, timing):
        monkeypatch.setattr(module, "open_session", open_fake)
    monkeypatch.setattr(Processor, "load", lambda directory: NumberProcessor())
    monkeypatch.setattr(
        comparison,
        "peak_memory",
        lambda directory, context, batch: Memory(
            context=context,
            batch=batch,
            image_tokens=4,
            peak_memory_bytes=10**9,
            before_loading_bytes=1,
            resident_bytes=[10**9] * 32,
        ),
    )
    for name in tables:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(name.encode())
    return {name: tmp_path / name for name in tables}


def last_line(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_accuracy_has_errors_and_intervals_beside_it(
    models: dict[str, Path], suite: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["accuracy", str(models["worse"]), "--suite", str(suite), "--items", "100"]
    assert main([*line, "--json", "-o", str(tmp_path / "answers.jsonl")]) == 0
    scores = {score["task"]: score for score in last_line(capsys)["scores"]}
    assert set(scores) == {"ends in 1", "ends in 4", "all"}
    assert (scores["ends in 1"]["accuracy"], scores["ends in 4"]["accuracy"]) == (0, 1)
    share, n = scores["all"]["accuracy"], scores["all"]["n"]
    assert scores["all"]["standard_error"] == pytest.approx(np.sqrt(share * (1 - share) / n))
    assert scores["all"]["low"] < share < scores["all"]["high"]
    answers = read_observations(tmp_path / "answers.jsonl")
    assert sum(x.correct for x in answers) == round(share * n)
    assert main(line) == 0
    assert "± s.e." in capsys.readouterr().out


def test_latency_of_several_with_ratio_to_the_first(
    models: dict[str, Path], suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(models[name]) for name in ("base", "same", "base")]
    assert main(["latency", *folders, "--suite", str(suite), "--json", *SMALL]) == 0
    document = last_line(capsys)
    assert [arm["path"] for arm in document["arms"]] == folders
    assert document["arms"][0]["e2e_ratio"] == {"estimate": 1.0, "low": 1.0, "high": 1.0}
    assert document["noise"]["low"] <= document["noise"]["estimate"] <= document["noise"]["high"]
    slices = [part["slice"] for part in document["arms"][1]["slices"]]
    assert slices[:2] == ["all", "no image"]
    assert "load 0.5" in slices
    for arm in document["arms"]:
        assert [found["load"] for found in arm["loads"]] == [0.25, 0.5]
        assert all(found["e2e_ratio"] and found["noise"] for found in arm["loads"])
        assert arm["ttft_ms"]["p50"] <= arm["ttft_ms"]["p95"] <= arm["ttft_ms"]["p99"]
        assert arm["e2e_ratio"]["low"] <= arm["e2e_ratio"]["estimate"] <= arm["e2e_ratio"]["high"]


@pytest.mark.parametrize(
    ("candidate", "items", "verdict", "code"),
    [("same", "200", "PASS", 0), ("worse", "200", "FAIL", 3), ("same", "50", "INCONCLUSIVE", 4)],
)
def test_compare_exits_by_verdict(
    models: dict[str, Path],
    suite: Path,
    capsys: pytest.CaptureFixture[str],
    candidate: str,
    items: str,
    verdict: str,
    code: int,
) -> None:
    """Each task of this suite has one answer, so guessing would be perfect; that is not asked for here."""
    line = ["compare", str(models["base"]), str(models[candidate]), "--suite", str(suite), "--items", items]
    line += ["--accuracy-margin", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.noninferiority.guess_rate", lambda answers: 0.0)
        assert main([*line, *SMALL, "--latency-ratio", "1000", "--json"]) == code
        document = last_line(capsys)
        assert document["verdict"] == verdict
        judged = Gate.model_validate({key: value for key, value in document.items() if key != "fidelity"})
        names = [check.name.partition(", context")[0] for check in judged.checks]
        latency = ["ttft_ms p50", "itl_ms p50", "e2e_latency_ms"]
        latency += [f"e2e_latency_ms, load {load}" for load in (0.25, 0.5)]
        assert names == ["accuracy", *latency, "bytes", "peak_memory_bytes", "memory_growth"]
        assert judged.baseline != judged.candidate
        assert document["fidelity"]["answer_flip_rate"] == (0.5 if candidate == "worse" else 0)
        assert main([*line, *SMALL, "--latency-ratio", "1000"]) == code
        printed = capsys.readouterr().out
        assert verdict in printed
        assert "accuracy, ends in 4" in printed


def test_compare_holds_every_slice_to_its_margin(
    models: dict[str, Path], suite: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half of the items are of a task on which the candidate is never right; the margin of all is wide."""
    line = [
        "compare",
        str(models["base"]),
        str(models["worse"]),
        "--suite",
        str(suite),
        "--items",
        "100",
        *SMALL,
    ]
    limits = ["--latency-ratio", "1000", "--accuracy-margin", "99", "--slice-margin", "20", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.noninferiority.guess_rate", lambda answers: 0.0)
        assert main([*line, *limits]) == 3
    found = {
        check["slice"]: check["verdict"]
        for check in last_line(capsys)["checks"]
        if check["metric"] == "accuracy"
    }
    assert found == {"all": "PASS", "ends in 1": "FAIL", "ends in 4": "PASS"}


@pytest.fixture
def run(models: dict[str, Path], suite: Path, tmp_path: Path) -> Path:
    """The baseline's, of 100 questions; the baseline itself is gone."""
    line = ["accuracy", str(models["base"]), "--suite", str(suite), "--items", "100", "--max-tokens", "3"]
    assert main([*line, "--record", str(tmp_path / "run")]) == 0
    shutil.rmtree(models["base"])
    return tmp_path / "run"


@pytest.mark.parametrize(("candidate", "code", "flipped"), [("same", 0, 0.0), ("worse", 3, 0.5)])
def test_a_baseline_of_another_day_is_compared_by_what_was_kept(
    models: dict[str, Path],
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    candidate: str,
    code: int,
    flipped: float,
) -> None:
    """What was asked then, whatever suite is named now; latency is not."""
    monkeypatch.setattr("bench.noninferiority.guess_rate", lambda answers: 0.0)
    capsys.readouterr()
    line = ["compare", str(run), str(models[candidate]), "--suite", "ocr", "--accuracy-margin", "4", "--json"]
    assert main(line) == code
    document = last_line(capsys)
    checks = {check["metric"]: check for check in document["checks"]}
    assert list(checks) == ["accuracy", "bytes", "peak_memory_bytes", "memory_growth"]
    assert checks["accuracy"]["n"] == 100
    assert checks["accuracy"]["delta"] == -100 * flipped
    fidelity = document["fidelity"]
    assert (fidelity["items"], fidelity["answer_flip_rate"]) == (100, flipped)
    assert (fidelity["kl_mean"] > 0, fidelity["top1_agreement"] < 1) == (flipped > 0, flipped > 0)


def test_a_run_is_kept_once_and_whole(
    models: dict[str, Path], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["accuracy", str(models["same"]), "--record", str(run)]) == 1
    assert "already exists" in capsys.readouterr().err
    answers = (run / "observations.jsonl").read_text().splitlines(keepends=True)
    (run / "observations.jsonl").write_text("".join(answers[:-1]))
    assert main(["compare", str(run), str(models["same"])]) == 1
    assert "99 answers are not to its 100 items" in capsys.readouterr().err
    (run / "run.json").write_text("{}")
    assert main(["compare", str(run), str(models["same"])]) == 1
    assert "keep it anew" in capsys.readouterr().err


def test_plan_says_how_many_items(capsys: pytest.CaptureFixture[str]) -> None:
    """By hand, without a flip: z**2 * (1 - margin) / margin = 1.645**2 * 0.98 / 0.02 = 132.6."""
    assert main(["plan-n", "--flips", "0", "--json"]) == 0
    assert last_line(capsys) == {"slices": 1, "items_each": 133, "items": 133}
    assert main(["plan-n", "--margin", "15", "--slices", "33"]) == 0
    assert "1,980" in capsys.readouterr().out


def test_a_folder_against_itself_has_one_digest(models: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(models["base"], tmp_path / "copy")
    assert digest(models["base"]) == digest(tmp_path / "copy")
    assert digest(models["base"]) != digest(models["worse"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["accuracy", "/nonexistent"], "/nonexistent"),
        (["accuracy", "/nonexistent", "--suite", "macro"], "no suite 'macro'"),
        (["compare", "/nonexistent", "/nonexistent", "--accuracy-margin", "-1"], "accuracy_margin is -1"),
        (["plan-n", "--margin", "2", "--loss", "2"], "expected 0 <= loss < margin"),
        (["latency", "/nonexistent", "--batch", "25"], "expected --requests 25"),
        (["open-loop", "http://a", "http://a/v1"], "a server is named twice"),
        (["plan-n", "--flips", "1", "--loss", "1.5"], "loss <= flips"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(
    line: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(line) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["accuracy"],
        ["accuracy", "x", "--items", "0"],
        ["latency", "x", "--output-tokens", "1"],
        ["latency", "x", "--price-per-hour", "0"],
        ["plan-n", "--power", "1"],
        ["plan-n", "--confidence", "sure"],
        ["macro"],
    ],
)
def test_wrong_usage_exits_2(line: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main(line)
    assert exit_code.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_micro_passes_its_settings_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def train(out: Path, **settings: Any) -> dict[str, Any]:
        asked.append({"out": out, **settings})
        return {"steps": 7, "minutes": 0.1, "accuracy": {"ocr": 99.0}, "guess": {"ocr": 2.5}}

    monkeypatch.setitem(sys.modules, "bench.micro.train", SimpleNamespace(train=train))  # and no torch
    assert main(["micro", "-o", str(tmp_path / "m"), "--steps", "7", "--json"]) == 0
    assert last_line(capsys)["accuracy"] == {"ocr": 99.0}
    assert main(["micro"]) == 0
    assert "99.0" in capsys.readouterr().out
    assert asked == [
        {"out": tmp_path / "m", "threads": 2, "steps": 7},
        {"out": Path("micro-checkpoint"), "threads": 2},
    ]
