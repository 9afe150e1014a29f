"""Which code a result came from: a stage's own text, and every module of the project that it runs."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKERS = ("engines", "quantize", "bench")  # `build` only decides what they do, and keys hold its decisions


def code_version(stage: Callable[..., Any]) -> str:
    """Digest of a function and of what it imports, directly or not: an edited stage never answers from an
    old result, and an edit elsewhere never costs a new one."""
    text = textwrap.dedent(inspect.getsource(stage))
    digest = hashlib.sha256(text.encode())
    for file in sorted(reached(text)):
        digest.update(f"\0{file.relative_to(ROOT).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def reached(text: str) -> set[Path]:
    """Files of the project that a text imports, directly or not."""
    found: set[Path] = set()
    waiting = set(_modules(text))
    while waiting:
        file = waiting.pop()
        found.add(file)
        waiting |= set(_imported(file)) - found
    return found


@functools.cache
def _imported(file: Path) -> frozenset[Path]:
    return frozenset(_modules(file.read_text()))


def _modules(text: str) -> Iterator[Path]:
    """Files of the modules and packages that a text imports, wherever in the text."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom(module=str(module)):
                names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
            case _:
                continue
        for name in names:
            parts = name.split(".")
            if parts[0] not in WORKERS:
                continue
            for depth in range(1, len(parts) + 1):
                path = ROOT.joinpath(*parts[:depth])
                files = (path / "__init__.py", path.with_suffix(".py"))
                yield from (file for file in files if file.is_file())
