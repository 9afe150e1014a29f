"""Workflow files call what exists: every command in them is parsed by the parser it is for."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from bench.examples import Answer, Example
from build.markdown import markdown
from tests.conftest import ROOT

VARIANTS, NIGHTLY, GITLAB = (
    ".github/workflows/variants.yml",
    ".github/workflows/nightly.yml",
    ".gitlab-ci.yml",
)
FILES = (VARIANTS, NIGHTLY, GITLAB)
BUILD, PUBLISH, HISTORY = ["-m", "build", "all"], ["-m", "build", "publish"], ["-m", "bench", "history"]
OTHERS = {"gh", "docker", "printf", "curl", "mkdir", "test"}  # programs of the CI's own machines


def scripts(node: Any) -> Iterator[str]:
    """Every shell script below a node of a workflow."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("run", "script", "after_script", "before_script"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from scripts(value)
    elif isinstance(node, list):
        for value in node:
            yield from scripts(value)


def commands(file: str) -> list[list[str]]:
    """Each simple command of a workflow, as words without redirections."""
    found = []
    for script in scripts(yaml.safe_load((ROOT / file).read_text())):
        for line in script.splitlines():
            for command in re.split(r"\s\|\|?\s", line):
                found.append(shlex.split(re.sub(r">\s*\S+", "", command)))
    return [words for words in found if words]


@pytest.mark.parametrize("file", FILES)
def test_every_command_is_one_that_exists(file: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    ours = 0
    for program, *words in commands(file):
        if program.endswith("python"):
            assert words[0] == "-m", words
            importlib.import_module(f"{words[1]}.__main__").parser().parse_args(words[2:])
            ours += 1
        elif program == "make":
            assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in words), words
        else:
            assert program in OTHERS, program
    assert ours >= 2


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (VARIANTS, [BUILD, PUBLISH]),
        (NIGHTLY, [BUILD, HISTORY]),
        (GITLAB, [BUILD, BUILD, HISTORY, PUBLISH]),
    ],
)
def test_what_is_published_has_passed(file: str, expected: list[list[str]]) -> None:
    """`build all` ends the job unless it passed, before anything is published."""
    lines = [words[1:4] for words in commands(file) if words[0].endswith("python")]
    assert lines == expected
    assert "|| true" not in (ROOT / file).read_text()
    assert "continue-on-error" not in (ROOT / file).read_text()


def test_every_build_of_the_main_branch_is_in_the_history_of_the_night() -> None:
    """A cache is found again only by a job that names the same paths."""
    kept = [
        step["with"]["path"].split()
        for file in (VARIANTS, NIGHTLY)
        for job in yaml.safe_load((ROOT / file).read_text())["jobs"].values()
        for step in job["steps"]
        if "cache" in step.get("uses", "")
    ]
    jobs = yaml.safe_load((ROOT / GITLAB).read_text())
    kept += [jobs[name]["cache"]["paths"] for name in ("build", "nightly")]
    assert kept == [["artifacts/.store", "artifacts/qwen3-vl-micro/history.jsonl"]] * 4
    only = {name: [rule["if"] for rule in jobs[name]["rules"]] for name in ("build", "nightly", "publish")}
    night = '$CI_PIPELINE_SOURCE == "schedule"'
    assert all(rules[0] == night for rules in only.values())
    assert [jobs[name]["rules"][0].get("when") for name in only] == ["never", None, "never"]


def test_the_summary_for_a_pull_request() -> None:
    check = {"metric": "accuracy", "relative": False, "reason": "worse", "verdict": "FAIL"}
    low = {**check, "delta": -3.14, "ci_low": -4.2, "ci_high": -2.0}
    unmeasured = {**check, "delta": None, "verdict": "UNMEASURED"}
    waiver = {"check": "accuracy", "reason": "a demo", "expires": "2027-05-31", "status": "in force"}
    a = {"name": "a", "verdict": "FAIL", "checks": [low], "bytes": 10**6, "peak_memory_bytes": 10**8}
    b = {"name": "b", "verdict": "UNMEASURED", "checks": [unmeasured], "bytes": 1, "peak_memory_bytes": None}
    row = {"metric": "accuracy", "unit": "points", "baseline": 90.0, "candidate": 80.0, "n": 20}
    lost = row | {"slice": "ocr", "delta": -10.0, "ci_low": -20.0, "ci_high": -1.0}
    kept = row | {"slice": "count", "delta": 0.0, "ci_low": -9.0, "ci_high": 9.0}
    a |= {"waivers": [waiver], "slices": [kept, lost]}
    variants = [x | {"latency": [], "observed": []} for x in (a, b | {"waivers": [], "slices": []})]
    summary = {"model": "m", "verdict": "FAIL", "sentence": "None of it.", "variants": variants}
    said = (Answer(("fp16",), "7", 1.0, True), Answer(("a", "c"), "`*x*`\n|", 0.0, False))
    example = Example("id", "ocr", "What is\n\nit?", "7", ("data:",), True, 0, said)
    lines = markdown(summary, [example]).splitlines()
    assert lines[0] == "### m: FAIL"
    assert lines[2] == "None of it."
    assert lines[6:8] == [
        "| `a` | FAIL | -3.1 (-4.2 to -2.0) | - | 1 MB | 100 MB |",
        "| `b` | UNMEASURED | - | - | 1 B | - |",
    ]
    assert lines[8:11] == [
        "",
        "- `a` accuracy: FAIL, worse",
        "- `a` waiver in force: accuracy, until 2027-05-31: a demo",
    ]
    assert lines[12] == "<details><summary>Every task in points: a loss is shown on 1 of 2 (bold)</summary>"
    assert lines[16:18] == [
        "| ocr | 20 | 90.0 | **−10.0 (−20.0 to −1.0)** |",
        "| count | 20 | 90.0 | +0.0 (−9.0 to +9.0) |",
    ]
    assert lines[-5:-2] == [
        "- ocr: `What is it?` Right: `7`",
        "  - `fp16` (100 %): `7`",
        "  - `a`, `c` (0 %): `'*x*' |`",
    ]
    many = markdown(summary, [example] * 3000)
    assert len(many) < 65_536
    assert "Where answers differ" not in many


def test_a_slice_is_not_taken_for_the_whole_and_many_are_not_all_listed() -> None:
    whole = {"metric": "accuracy", "slice": "all", "relative": False, "reason": "low", "verdict": "FAIL"}
    whole |= {"delta": -3.0, "ci_low": -4.0, "ci_high": -2.0}
    slices = [whole | {"slice": f"t{i}", "delta": 0.0, "verdict": "INCONCLUSIVE"} for i in range(20)]
    row = {"name": "a", "verdict": "FAIL", "checks": [whole, *slices], "bytes": 1, "peak_memory_bytes": None}
    row |= {"waivers": [], "slices": [], "latency": [], "observed": []}
    lines = markdown({"model": "m", "verdict": "FAIL", "sentence": "No.", "variants": [row]}).splitlines()
    assert "| `a` | FAIL | -3.0 (-4.0 to -2.0) | - | 1 B | - |" in lines
    assert lines[-2:] == ["- `a` accuracy, t4: INCONCLUSIVE, low", "- `a` and 15 more, all in report.html"]


def test_the_summary_tells_latency_by_phase_and_its_noise() -> None:
    times = {"p50": 10.0, "p95": 20.0, "p99": 30.0}
    ratio = {"metric": "e2e_latency_ms", "relative": True, "reason": "fine", "verdict": "PASS"}
    ratio |= {
        "delta": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "noise": 1.0,
        "noise_low": 0.98,
        "noise_high": 1.03,
    }
    dark = {"metric": "power", "unit": "W", "reason": "not readable on this machine"}
    timed = {"name": "a", "verdict": "PASS", "checks": [ratio], "bytes": 1, "peak_memory_bytes": None}
    timed |= {
        "waivers": [],
        "observed": [dark],
        "slices": [],
        "latency": [
            {"slice": "all", "n": 40, "ttft_ms": times},
            {"slice": "image of 513–1,024 patches", "n": 9, "ttft_ms": times},
            {"slice": "load 0.25", "n": 41, "ttft_ms": times},
            {"slice": "load 0.25, no image", "n": 9, "ttft_ms": times},
        ],
    }
    page = markdown({"model": "m", "verdict": "PASS", "sentence": "All of it.", "variants": [timed]})
    assert "| 0.500 (0.400 to 0.600), noise 0.980 to 1.030 |" in page
    assert "| variant | load | ttft | vision | prefill | itl | e2e | n |" in page
    assert "| `a` | - | 10 / 20 / 30 | - | - | - | - | 40 |" in page
    assert "| `a` | 0.25 | 10 / 20 / 30 | - | - | - | - | 41 |" in page
    assert page.count("10 / 20 / 30") == 2
    assert "- `a` power: not readable on this machine" in page


def test_documented_files_exist() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", guide)
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
