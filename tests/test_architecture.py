"""Arrows between packages go down only, and nothing heavy is imported where it is not used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Who may import whom. One ground floor that everybody stands on, one top floor that knows all.
MAY_IMPORT = {
    "engines": {"engines"},
    "quantize": {"quantize", "engines"},
    "bench": {"bench", "engines"},
    "serve": {"serve", "engines"},
    "build": {"build", "bench", "quantize", "engines"},
}


def modules() -> list[Path]:
    return [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    """Absolute names of every module a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the package"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows_go_down_only(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {name.split(".")[0] for name in imports(path)} & MAY_IMPORT.keys()
    assert ours <= MAY_IMPORT[package], f"{package} imports {ours - MAY_IMPORT[package]}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_hold_one_concept(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= 330, f"{lines} lines: is there a seam?"


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_import_cycles(package: str) -> None:
    graph = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        graph[name] = set(imports(path))

    def reach(name: str) -> Iterator[str]:
        for found in graph[name]:
            for candidate in (found, found.rpartition(".")[0]):
                if candidate in graph and candidate != name:
                    yield candidate

    state: dict[str, str] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != "open", f"cycle: {' -> '.join((*trail, name))}"
        if name in state:
            return
        state[name] = "open"
        for nearer in reach(name):
            visit(nearer, (*trail, name))
        state[name] = "done"

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_help_is_light(package: str) -> None:
    """It imports the standard library, the errors, and what tells the options: on a quiet machine 0.1 s."""
    script = (
        "import runpy, sys\n"
        "before = set(sys.modules)\n"
        f"sys.argv = ['{package}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('{package}', run_name='__main__')\n"
        "except SystemExit as done:\n"
        "    assert not done.code, done.code\n"
        "others = set(sys.modules) - before\n"
        "print(*sorted(name for name in others if name.split('.')[0] not in sys.stdlib_module_names),\n"
        "      file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    options = {
        "bench": {"bench.options", "bench.server_options"},
        "engines": {"engines.units"},
        "quantize": {"engines.units"},
        "serve": {"serve.router", "serve.router.options"},
    }.get(package, set())
    assert set(done.stderr.split()) == {package, "engines", "engines.errors", "engines.arguments"} | options
    assert "usage:" in done.stdout
