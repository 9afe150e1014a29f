"""Every command, flag, recipe field and manifest field is documented."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from build.recipe import known_fields
from engines.artifact import Manifest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("build", "quantize", "engines", "bench", "serve")


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    """Each command line prefix with the flags and arguments it takes."""
    own = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        names = [next((o for o in a.option_strings if o.startswith("--")), a.metavar or a.dest) for a in own]
        yield parser.prog, [str(name) for name in names if name not in ("--help", "-h")]
    for action in nested:
        for child in action.choices.values():
            yield from commands(child)


ALL = [
    entry
    for package in PACKAGES
    for entry in commands(importlib.import_module(f"{package}.__main__").parser())
]


@pytest.mark.parametrize(("command", "arguments"), ALL, ids=[command for command, _ in ALL])
def test_commands_are_documented(command: str, arguments: list[str]) -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    assert f"### `{command}" in text, f"docs/commands.md has no heading for {command}"
    section = text.split(f"### `{command}", 1)[1].split("\n### ", 1)[0].split("\n## ", 1)[0]
    missing = [argument for argument in arguments if f"{argument}" not in section]
    assert not missing, f"docs/commands.md does not tell what {missing} of {command} mean"


def silent(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What --help lists and says nothing of."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from ([] if command.description else [command.prog])
                yield from silent(command)
        elif not action.help:
            yield f"{parser.prog} {action.dest}"


@pytest.mark.parametrize("package", PACKAGES)
def test_help_says_something_of_everything(package: str) -> None:
    assert list(silent(importlib.import_module(f"{package}.__main__").parser())) == []


def test_documented_commands_exist() -> None:
    headings = [
        line for line in (ROOT / "docs" / "commands.md").read_text().splitlines() if line.startswith("### `")
    ]
    assert len(headings) == len(ALL)


@pytest.mark.parametrize("field", known_fields())
def test_recipe_fields_are_documented(field: str) -> None:
    assert f"`{field}`" in (ROOT / "docs" / "reference" / "recipe.md").read_text()


@pytest.mark.parametrize("field", Manifest.model_fields)
def test_manifest_fields_are_documented(field: str) -> None:
    assert f"`{field}`" in (ROOT / "docs" / "artifact.md").read_text()


def messages() -> Iterator[str]:
    """Every text of the sources, with `…` for what is filled in."""
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_trouble_shooting_quotes_what_is_said() -> None:
    """Quotes of the first column that are sentences, not the names of commands."""
    table = (ROOT / "docs" / "deploy.md").read_text().split("| what you see |", 1)[1]
    seen = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| "))
    quotes = [
        quote for quote in re.findall(r"`([^`]+)`", seen) if " " in quote and "build select" not in quote
    ]
    assert len(quotes) > 15
    said = "\n".join(messages())
    assert [quote for quote in quotes if quote not in said] == []
