"""Recipes are checked before any work starts, and their problems fit on one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from build.recipe import RECIPES, Recipe, known_fields, load_recipe
from engines.errors import UserError


@pytest.mark.parametrize("name", ["micro", "qwen3-vl-2b"])
def test_shipped_recipes_load(name: str) -> None:
    assert load_recipe(name).name == name


def test_overrides_reach_nested_fields() -> None:
    recipe = load_recipe("micro", model="/somewhere", overrides=["evaluate.items=7", "quantize.damping=0.05"])
    assert (recipe.evaluate.items, recipe.quantize.damping, recipe.model) == (7, 0.05, "/somewhere")


def test_only_keeps_what_the_variant_is_made_from() -> None:
    assert load_recipe("micro", only=["awq-int4-onnx"]).variants == ("fp16", "awq-int4", "awq-int4-onnx")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "gate.acuracy_margin=1",
            "unknown recipe field gate.acuracy_margin; did you mean gate.accuracy_margin?",
        ),
        ("nonsense=1", "unknown recipe field nonsense"),
        ("quantize.group_size=33", "quantize.group_size"),
        ("evaluate.items=0", "evaluate.items"),
        ("evaluate.items=many", "found 'many'"),
        ("evaluate.items", "expected section.field=value"),
        ("model.x=1", "model is not a section"),
        ("variants=[onnx-fp16]", "variants must include fp16"),
        ("variants=[fp16, gptq-int4-onnx]", "gptq-int4-onnx is made from gptq-int4"),
        ("evaluate.items=[", "is not a YAML value"),
    ],
)
def test_a_bad_override_is_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("micro", overrides=[override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "holds list, expected a mapping"),
        ("a: [", "is not YAML"),
        ("name: x\n", "Field required"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="mine") as caught:
        load_recipe(str(path))
    assert message in str(caught.value)


def test_unknown_names_list_what_is_known() -> None:
    with pytest.raises(UserError, match="expected one of micro, qwen3-vl-2b"):
        load_recipe("mikro")
    with pytest.raises(UserError, match="no such variant; expected some of fp16, onnx-fp16"):
        load_recipe("micro", only=["int3"])


def test_published_schema_is_the_recipe() -> None:
    assert json.loads((RECIPES / "schema.json").read_text()) == Recipe.model_json_schema(), (
        "write it again: python -m build schema > build/recipes/schema.json"
    )


def test_every_field_has_a_description() -> None:
    schema = json.dumps(Recipe.model_json_schema())
    sections = [Recipe.model_json_schema(), *Recipe.model_json_schema()["$defs"].values()]
    for section in sections:
        for name, field in section.get("properties", {}).items():
            assert field.get("description"), f"{name} of {section.get('title')} in {schema[:40]}"
    assert "gate.max_bytes" in known_fields()
