"""A stage's version changes with the code that it runs, and with no other."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from build import code, measuring, stages


def stage() -> Any:
    from quantize.method import scale

    return scale


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    files = {
        "quantize/__init__.py": "",
        "quantize/method.py": "import math\n\ndef scale():\n    from engines.numbers import TINY\n",
        "engines/__init__.py": "",
        "engines/numbers.py": "TINY = 1e-6\n",
        "engines/other.py": "import engines.numbers\n",
        "build/policy.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("edited", "counts"),
    [
        ("quantize/method.py", True),
        ("quantize/__init__.py", True),
        ("engines/numbers.py", True),  # imported by what the stage imports
        ("engines/other.py", False),  # imports, and is not imported
        ("build/policy.py", False),
    ],
)
def test_an_edit_counts_where_the_stage_reaches(tree: Path, edited: str, counts: bool) -> None:
    before = code.code_version(stage)
    with (tree / edited).open("a") as file:
        file.write("# edited\n")
    assert (code.code_version(stage) != before) == counts


def test_the_stage_itself_counts(tree: Path) -> None:
    assert code.code_version(stage) != code.code_version(test_the_stage_itself_counts)


def test_every_stage_reaches_the_code_that_does_its_work() -> None:
    does = {
        stages.checkpoint: "engines/checkpoint.py",
        stages.quantized: "quantize/gptq.py",
        stages.exported: "engines/graphs/fused.py",
        stages.standard: "engines/graphs/standard.py",
        stages.engines: "engines/tensorrt/compiler.py",
        measuring.items: "bench/micro/tasks.py",
        measuring.evaluated: "engines/generate.py",
        measuring.memory: "engines/onnx_session.py",
    }
    for stage, file in does.items():
        assert code.ROOT / file in code.reached(inspect.getsource(stage)), f"{stage.__name__}: {file}"
