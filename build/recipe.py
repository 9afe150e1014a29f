"""Recipes: everything a build depends on, checked before any work starts.

A recipe is YAML; unknown keys are refused. The JSON Schema is published as build/recipes/schema.json.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from bench.verdict import Limits
from engines.errors import UserError

RECIPES = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True)
class Kind:
    """How a variant is made and run. Labels say it to people; code asks here."""

    made_from: str | None = None  # None is the checkpoint itself
    method: str | None = None  # by which its weights got their 4 bits
    onnx: bool = False  # run by onnxruntime on a CPU
    int8_cache: bool = False  # keys and values in int8
    target: str | None = None  # run by TensorRT on a GPU of that compute capability

    @property
    def runs(self) -> bool:
        """Whether it has an engine of its own; the others are checkpoints, which other engines run."""
        return self.onnx or self.target is not None

    @property
    def device(self) -> str:
        """Where it is measured, and the baseline it is compared with too."""
        return "cuda" if self.target else "cpu"


KINDS: dict[str, Kind] = {
    "fp16": Kind(),
    "onnx-fp16": Kind("fp16", onnx=True),
    "gptq-int4": Kind("fp16", "gptq"),
    "gptq-int4-onnx": Kind("gptq-int4", "gptq", onnx=True),
    "gptq-int4-onnx-kv8": Kind("gptq-int4", "gptq", onnx=True, int8_cache=True),
    "awq-int4": Kind("fp16", "awq"),
    "awq-int4-onnx": Kind("awq-int4", "awq", onnx=True),
    "awq-int4-onnx-kv8": Kind("awq-int4", "awq", onnx=True, int8_cache=True),
}
KINDS |= {
    f"trt-{base}-{target}": Kind(base, KINDS[base].method, target=target)
    for base in ("fp16", "gptq-int4", "awq-int4")
    for target in ("sm86", "sm89", "sm90", "sm120")
}


# The baseline's arms: the same checkpoint, run where the variants are that it is compared with.
BASELINES = {"cpu": "fp16", "cuda": "fp16-cuda"}


def _known(variant: str) -> str:
    if variant not in KINDS:
        raise ValueError(f"no variant {variant!r}; expected some of {', '.join(KINDS)}")
    return variant


Variant = Annotated[str, AfterValidator(_known), WithJsonSchema({"enum": list(KINDS), "type": "string"})]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quantize(Section):
    group_size: Literal[32, 64, 128] = Field(32, description="Weights that share one scale.")
    calibration: str = Field(
        "default",
        description="`default` (the set that ships with the project) or a JSONL file of chat messages.",
    )
    damping: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="Fraction of the Hessian's mean diagonal added to its diagonal."
    )
    max_kl: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="What INT4 may cost, KL in nats on calibration samples: the worst layers get 8 bits.",
    )


class Export(Section):
    accuracy_level: Literal[0, 4] = Field(
        4,
        description="INT4 products on the CPU: 4 rounds activations to int8 (fast), 0 keeps fp32.",
    )


class Evaluate(Section):
    suite: str = Field(
        "micro",
        description="`micro`, `mixed` or another suite of docs/suites.md, `BENCHMARK:DIR`, or a JSONL file.",
    )
    items: PositiveInt = Field(1000, description="Held-out items each variant answers.")
    seed: int = Field(0, description="Seed of the generated items.")
    max_tokens: PositiveInt = Field(16, description="Longest answer, in tokens.")
    batch_size: PositiveInt = Field(32, description="Items answered together.")
    fidelity_items: PositiveInt = Field(
        200, description="Items on which whole next-token distributions are compared with the baseline's."
    )
    shard_items: PositiveInt = Field(
        1000,
        description="Most items of a shard; shards are answered one by one, or by several nodes at once.",
    )

    @property
    def shards(self) -> int:
        """Of each variant's evaluation."""
        return ceil(self.items / self.shard_items)


def _alone_too(batches: tuple[int, ...]) -> tuple[int, ...]:
    if 1 not in batches or len(set(batches)) < len(batches):
        raise ValueError("expected different numbers with 1, which is what the gate asks for, among them")
    return batches


def _different(rates: tuple[float, ...]) -> tuple[float, ...]:
    if len(set(rates)) < len(rates):
        raise ValueError("expected different numbers")
    return rates


class Latency(Section):
    requests: PositiveInt = Field(24, description="Different requests, the same for every arm.")
    repeats: PositiveInt = Field(2, description="Times each arm answers each request, in mirrored order.")
    most_repeats: PositiveInt = Field(
        6, description="Times at most: repeated while the baseline differs too much from itself."
    )
    batches: Annotated[tuple[PositiveInt, ...], AfterValidator(_alone_too)] = Field(
        (1,), description="Requests answered together, if there are as many; the gate asks for 1."
    )
    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], AfterValidator(_different)] = Field(
        (0.25, 0.5),
        description="Loads: Poisson arrivals, fixed by a seed, as fractions of what the baseline answers.",
    )
    output_tokens: Annotated[int, Field(ge=2)] = Field(16, description="Tokens generated for each request.")
    warmup: PositiveInt = Field(2, description="Requests answered and thrown away before measuring.")


class Price(Section):
    per_hour: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Of the machine; null tells no cost of tokens."
    )
    currency: str = Field("USD", min_length=1, description="In which it is told.")


class Recipe(Section):
    name: str = Field(description="Name of the recipe.")
    model: str = Field("embedded", description="`embedded`, a folder, or HUB_ID@REVISION.")
    variants: tuple[Variant, ...] = Field(description="What to build, by label.")
    quantize: Quantize = Field(Quantize(), description="How INT4 variants are made.")
    export: Export = Field(Export(), description="How ONNX variants are made.")
    evaluate: Evaluate = Field(Evaluate(), description="How accuracy is measured.")
    latency: Latency = Field(Latency(), description="How latency is measured.")
    price: Price = Field(Price(), description="What the machine costs.")
    gate: Limits = Field(Limits(), description="What a variant must hold to be published.")

    @model_validator(mode="after")
    def _complete(self) -> Recipe:
        if "fp16" not in self.variants:
            raise ValueError("variants must include fp16: it is the baseline the others are gated against")
        for waiver in self.gate.waivers:
            if waiver.variant not in (None, *KINDS):
                raise ValueError(f"gate.waivers is for {waiver.variant}: expected one of {', '.join(KINDS)}")
        for variant in self.variants:
            parent = KINDS[variant].made_from
            if parent and parent not in self.variants:
                raise ValueError(f"{variant} is made from {parent}; add {parent} to variants")
        return self


def load_recipe(
    name: str, *, model: str | None = None, only: Sequence[str] = (), overrides: Sequence[str] = ()
) -> Recipe:
    """Reads a recipe by name or file and applies what the command line says.

    ``only`` keeps the named variants and what they are made from; ``overrides`` are ``section.field=value``
    with the value in YAML. Raises UserError with the first thing that is wrong.
    """
    named = RECIPES / f"{name}.yaml"
    path = named if named.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.yaml")))
        raise UserError(f"no recipe {name!r}: expected one of {known}, or a YAML file")
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} holds {type(document).__name__}, expected a mapping of recipe fields")
    for override in overrides:
        _apply(document, override)
    if model:
        document["model"] = model
    if only:
        document["variants"] = _closure(only)
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        raise UserError(_first_problem(error, path)) from None


def _apply(document: dict[str, Any], override: str) -> None:
    dotted, equals, value = override.partition("=")
    if not equals or not all(dotted.split(".")):
        raise UserError(
            f"--set {override}: expected section.field=value, for example --set evaluate.items=200"
        )
    *sections, last = dotted.split(".")
    target = document
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise UserError(f"--set {override}: {section} is not a section of the recipe")
    try:
        target[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {override}: {value!r} is not a YAML value") from None


def _closure(only: Sequence[str]) -> list[str]:
    wanted = {"fp16"}
    for variant in only:
        if variant not in KINDS:
            near = difflib.get_close_matches(variant, KINDS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise UserError(f"--only {variant}: no such variant{hint}; expected some of {', '.join(KINDS)}")
        name: str | None = variant
        while name:
            wanted.add(name)
            name = KINDS[name].made_from
    return [variant for variant in KINDS if variant in wanted]


def _first_problem(error: ValidationError, path: Path) -> str:
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(where, known_fields(), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else f"; see the fields in {RECIPES.name}/schema.json"
        return f"unknown recipe field {where}{hint}"
    problem = first["msg"].removeprefix("Value error, ")
    found = (
        ""
        if isinstance(first["input"], dict) or first["type"] == "missing"
        else f", found {first['input']!r}"
    )
    return f"recipe {path.name}: {where + ': ' if where else ''}{problem}{found}"


def known_fields(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every field of a recipe as ``section.field``."""
    names = []
    for name, info in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names += known_fields(info.annotation, f"{prefix}{name}.")
    return names
