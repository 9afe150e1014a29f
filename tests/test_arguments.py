"""What every command line does the same: without words, without packages, on Ctrl-C, with nobody reading."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable

import pytest

from engines.arguments import exit_code
from engines.errors import UserError
from tests.conftest import ROOT

PACKAGES = ("build", "bench", "engines", "quantize", "serve")


def raising(error: BaseException) -> Callable[[], int]:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize("package", PACKAGES)
def test_without_a_word_the_help_is_shown(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"{package}.__main__").main([])
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert f"usage: python -m {package}" in printed.err
    assert "--help" in printed.err


def test_a_mistyped_flag_is_told_with_the_one_that_is_near(capsys: pytest.CaptureFixture[str]) -> None:
    for package, words in (
        ("build", ["all", "--recpie=micro"]),
        ("quantize", ["x", "-o", "y", "--metod", "awq"]),
    ):
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(f"{package}.__main__").main(words)
        assert ended.value.code == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith(f"python -m {package}")
        assert told.endswith(("did you mean --recipe?", "did you mean --method?"))


@pytest.mark.parametrize(
    "words",
    [
        ("build", "all"),
        ("build", "select"),
        ("bench", "accuracy", "DIR"),
        ("engines", "run", "DIR", "--prompt", "?"),
        ("quantize", "CHECKPOINT", "-o", "nowhere"),
        ("serve", "arm", "DIR"),
        ("serve", "router", "policy.yaml"),
    ],
    ids=" ".join,
)
def test_a_python_without_the_packages_is_told_in_a_line(words: tuple[str, ...]) -> None:
    """As when the environment is not the one that `make setup` makes."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"is not installed for {sys.executable}: expected .venv/bin/python, which `make setup`" in line


def test_a_module_of_ours_that_is_missing_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError):
        exit_code(lambda: int(bool(importlib.import_module("bench.no_such_module"))))


@pytest.mark.parametrize(
    ("error", "resumes", "code", "told"),
    [
        (KeyboardInterrupt(), False, 130, "interrupted"),
        (KeyboardInterrupt(), True, 130, "interrupted; run the same command again to go on from here"),
        (UserError("found a, expected b"), True, 1, "found a, expected b"),
        (
            FileNotFoundError(2, "No such file or directory", "here"),
            False,
            1,
            "here: No such file or directory",
        ),
        (OSError(28, "No space left on device"), False, 1, "output: No space left on device"),
        (MemoryError(), False, 1, "out of memory: "),
    ],
)
def test_what_is_no_bug_is_one_line(
    error: BaseException, resumes: bool, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(raising(error), resumes=resumes) == code
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_a_reader_that_has_seen_enough_gets_no_trace() -> None:
    """As of `python -m serve schema | head -1`."""
    command = [sys.executable, "-m", "serve", "schema"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout
        assert running.stderr
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 1
