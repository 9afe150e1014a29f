"""Policies as text: YAML in, a Policy out, every refusal with its line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from engines.errors import UserError
from serve.router.policy import Place, Policy

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's: a rollback waits for it
DEEPEST = 20
SCHEMA = Path(__file__).resolve().parent / "schema.json"


def read_policy(path: Path) -> Policy:
    """The policy in a file. Raises UserError with its first problem and the line."""
    try:
        return parse_policy(path.read_text(), path.name)
    except FileNotFoundError:
        raise UserError(f"no policy {path}: expected a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text: expected a YAML file in UTF-8") from None


def parse_policy(text: str, name: str = "policy") -> Policy:
    """The policy in a text; `name` is what errors call it."""
    try:
        _check_shape(text, name)
        root = yaml.compose(text, Loader)
        document = yaml.load(text, Loader)
    except UserError:  # a ValueError, too
        raise
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{name}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{name}: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{name}: found {type(document).__name__}, expected a mapping of policy fields")
    for key in _repeated(root):
        raise UserError(f"{name}:{_line(key)}: {key.value!r} is given twice; keep one")
    try:
        return Policy.model_validate(document)
    except ValidationError as error:
        raise UserError(_first_problem(error, root, name)) from None


def _check_shape(text: str, name: str) -> None:
    """Refuses what a short text makes gigabytes or minutes of: aliases, and lists in lists without end."""
    depth = 0
    for event in yaml.parse(text, Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{name}:{_line(event)}: *{event.anchor}: write the value out; no aliases")
        if depth > DEEPEST:
            raise UserError(f"{name}:{_line(event)}: nested deeper than any policy is")


def with_weights(text: str, weights: Mapping[str, Decimal]) -> str:
    """The same text with other weights; all else, comments too, stays as it was written."""
    root = yaml.compose(text, Loader)
    assert root
    split = next(value for key, value in root.value if key.value == "split")
    found = next(value for key, value in split.value if key.value == "weights")
    for key, value in sorted(found.value, key=lambda pair: -pair[1].start_mark.index):
        start, end = value.start_mark.index, value.end_mark.index
        text = f"{text[:start]}{weights[key.value].normalize():f}{text[end:]}"
    return text


def schema() -> str:
    """The JSON Schema of policies, as published in schema.json."""
    return json.dumps(Policy.model_json_schema(), indent=2) + "\n"


def _first_problem(error: ValidationError, root: yaml.Node, name: str) -> str:
    first = error.errors()[0]
    place: Place = first["loc"]
    where = ".".join(str(part) for part in place)
    line, found = _locate(root, place)
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(place[-1]), set(_fields(Policy)), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "see docs/reference/policy.md"
        return f"{name}:{line}: unknown field {where}; {hint}"
    problem = first["msg"].removeprefix("Value error, ")
    shown = (
        f", found {found.value!r}" if isinstance(found, yaml.ScalarNode) and first["type"] != "policy" else ""
    )
    return f"{name}:{line}: {where + ': ' if where else ''}{problem}{shown}"


def _locate(root: yaml.Node, place: Place) -> tuple[int, yaml.Node | None]:
    """Line of the deepest part of a place that the text has, and its value when all of it is there."""
    node, line = root, _line(root)
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pairs = {key.value: (key, value) for key, value in node.value}
            if part not in pairs:
                return line, None
            key, node = pairs[part]
            line = _line(key)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = _line(node)
        else:
            break
    return line, node


def _line(part: yaml.Node | yaml.Event) -> int:
    assert part.start_mark
    return int(part.start_mark.line) + 1


def _repeated(node: yaml.Node) -> Iterator[yaml.Node]:
    """Keys that a mapping has twice; YAML itself would silently keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key
            seen.add(key.value)
            yield from _repeated(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item)


def _fields(model: type[BaseModel]) -> Iterator[str]:
    for definition in (model.model_json_schema(), *model.model_json_schema()["$defs"].values()):
        yield from definition["properties"]
