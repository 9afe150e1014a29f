"""Writes the pages beside it: every field of recipes, gates and policies, from the schemas that check them.

make reference
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from bench.verdict import Gate  # noqa: E402
from build.recipe import Recipe  # noqa: E402
from serve.router.policy import Policy  # noqa: E402

Schema = dict[str, Any]
PAGES: dict[str, tuple[type[BaseModel], str, str]] = {
    "recipe": (
        Recipe,
        "Fields of a recipe",
        "What `python -m build` builds and holds it to: [recipe.md](../recipe.md).",
    ),
    "gate": (
        Gate,
        "Fields of gate.json",
        "What a variant's `evidence/gate.json` says: [artifact.md](../artifact.md).",
    ),
    "policy": (
        Policy,
        "Fields of a policy",
        "What `python -m serve router` follows: [router.md](../router.md).",
    ),
}
BOUNDS = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}


def page(name: str) -> str:
    """Markdown of one page: a table with a row for each field, those of sections under their section."""
    model, title, intro = PAGES[name]
    schema = model.model_json_schema()
    head = [f"# {title}", "", intro, "", "Written by `make reference`.", ""]
    table = ["| field | value | default | meaning |", "|---|---|---|---|"]
    return "\n".join([*head, *table, *_rows(schema, schema.get("$defs", {}), "")]) + "\n"


def _rows(section: Schema, defs: dict[str, Schema], prefix: str) -> Iterator[str]:
    for name, field in section["properties"].items():
        steps, inner = _inner(field, defs)
        cells = (
            f"`{prefix}{name}`",
            _value(field, defs),
            _default(name, section),
            field.get("description", ""),
        )
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if inner:
            yield from _rows(inner, defs, f"{prefix}{name}{steps}.")


def _inner(field: Schema, defs: dict[str, Schema]) -> tuple[str, Schema | None]:
    """The section a field holds, and what stands between its name and the section's fields."""
    if "$ref" in field:
        found = defs[field["$ref"].rpartition("/")[2]]
        return "", found if "properties" in found else None
    for kind in field.get("anyOf", ()):
        steps, inner = _inner(kind, defs)
        if inner:
            return steps, inner
    for step, kind in (("[]", field.get("items")), (".NAME", _mapped(field))):
        if kind:
            steps, inner = _inner(kind, defs)
            return step + steps, inner
    return "", None


def _mapped(field: Schema) -> Schema | None:
    """The schema of a mapping's values."""
    found = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
    return next((kind for kind in found if isinstance(kind, dict)), None)


def _value(field: Schema, defs: dict[str, Schema]) -> str:
    """In words, what may stand there."""
    if "$ref" in field:
        found = defs[field["$ref"].rpartition("/")[2]]
        return "section" if "properties" in found else _value(found, defs)
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "anyOf" in field:
        kinds = [_value(kind, defs) for kind in field["anyOf"] if kind.get("type") != "null"]
        return kinds[0]  # a decimal may be text too, and null is seen in the default
    if field["type"] == "array":
        return f"list of {_value(field['items'], defs)}"
    if field["type"] == "object":
        mapped = _mapped(field)
        return f"{_value(mapped, defs)} by name" if mapped else "mapping"
    kind = str(field["type"])
    words = {"string": "text", "boolean": "true or false"}.get(kind, kind)
    words = {"date": "date", "ipvanynetwork": "network"}.get(field.get("format", ""), words)
    return " ".join(
        [words, *(f"{sign} {field[bound]:g}" for bound, sign in BOUNDS.items() if bound in field)]
    )


def _default(name: str, section: Schema) -> str:
    if name in section.get("required", ()):
        return "required"
    default = section["properties"][name].get("default", {})
    return "" if isinstance(default, dict) else f"`{json.dumps(default)}`"


def main() -> None:
    for name in PAGES:
        (HERE / f"{name}.md").write_text(page(name))


if __name__ == "__main__":
    main()
