"""Every command, flag, recipe field and manifest field is documented, and what pages type is right."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from build.recipe import known_fields
from engines.artifact import Manifest
from tests.conftest import ROOT

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


PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "bench").rglob("*.md")),
]

BLOCK = re.compile(r"^```(sh|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def typed() -> Iterator[tuple[str, list[str]]]:
    """Page and words of each command in a block to be typed; of a console what follows the prompt."""
    for page in PAGES:
        for kind, block in BLOCK.findall(page.read_text()):
            for line in block.replace("\\\n", "").splitlines():
                prompt, dollar, command = line.partition("$ ") if kind == "console" else ("", "$ ", line)
                if dollar and " " not in prompt and (words := shlex.split(command, comments=True)):
                    yield page.relative_to(ROOT).as_posix(), [word for word in words if word != "&"]


@pytest.mark.parametrize(
    ("page", "words"), list(typed()), ids=lambda part: part if isinstance(part, str) else " ".join(part)[:60]
)
def test_what_is_to_be_typed_is_a_command(page: str, words: list[str]) -> None:
    """One of ours is called in the environment of `make setup`, with words that its parser takes."""
    program, *rest = words
    if program == "make":
        assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text()
    elif rest[:1] == ["-m"] and rest[1] in PACKAGES:
        assert program == ".venv/bin/python"
        importlib.import_module(f"{rest[1]}.__main__").parser().parse_args(rest[2:])
    else:
        assert program not in ("pip", "ray", "serve"), "which are the environment's: .venv/bin"


def flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """All of a command line, of every command."""
    for action in parser._actions:
        yield from action.option_strings
        for child in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            yield from flags(child)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_flags_in_sentences_exist(page: Path) -> None:
    found = re.findall(r"`python -m (\w+) ([^`]+)`", page.read_text())
    for package, words in found:
        if package in PACKAGES:
            known = set(flags(importlib.import_module(f"{package}.__main__").parser()))
            assert set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", words)) <= known, words


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
