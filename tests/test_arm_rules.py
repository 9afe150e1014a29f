"""The fields of a request become the rules its tokens are chosen by, and the checkpoint fills in the rest."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.constraint import Grammar
from engines.errors import UserError
from engines.penalties import Penalties
from engines.processor import Processor
from engines.sampling import Sampling
from serve.arm.errors import ApiError
from serve.arm.model import sampling_defaults
from serve.arm.rules import call_schema, rules
from serve.arm.schema import ChatRequest, Tool
from serve.arm.sequence import Rules

OWN = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.05}


@pytest.fixture(scope="module")
def processor(micro_checkpoint: Path) -> Processor:
    return Processor.load(micro_checkpoint)


def made(processor: Processor, **fields: Any) -> Rules:
    messages = [{"role": "user", "content": "BORA?"}]
    request = ChatRequest.model_validate({"messages": messages, "seed": 7, **fields})
    model: Any = SimpleNamespace(processor=processor, slots=SimpleNamespace(capacity=100), defaults=OWN)
    return rules(model, request, processor(messages))


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"temperature": "hot"}, r"generation_config.json: temperature: Input should be a valid number"),
        ({"do_sample": "no"}, r"do_sample: .*boolean"),
        ({"top_k": 2.5}, r"top_k: .*integer"),
        ({"top_p": 7}, r"generation_config.json: top_p is 7.0: expected above 0"),
        ({"repetition_penalty": float("nan")}, r"repetition_penalty is nan: expected 0.01 to 100"),
    ],
)
def test_nobody_samples_by_what_is_no_number(own: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(own))
    with pytest.raises(UserError, match=says):
        sampling_defaults(tmp_path)


def test_a_checkpoint_samples_its_own_way(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {"temperature": 1.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(OWN | {"do_sample": True, "top_k": -1}))
    assert sampling_defaults(tmp_path) == OWN | {"top_k": -1}
    (tmp_path / "generation_config.json").write_text(json.dumps(OWN | {"do_sample": False}))
    assert sampling_defaults(tmp_path) == {"temperature": 0.0}


def test_every_field_has_its_rule(processor: Processor) -> None:
    found = made(
        processor,
        temperature=1.5,
        top_p=0.5,
        top_k=3,
        min_p=0.2,
        presence_penalty=1.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.2,
        logit_bias={"5": 3},
        stop=["a", "b"],
        logprobs=True,
        top_logprobs=4,
        max_completion_tokens=9,
    )
    assert found.sampling == Sampling(1.5, top_p=0.5, top_k=3, min_p=0.2, seed=7)
    assert found.penalties == Penalties(1.5, -0.5, 1.2, {5: 3.0})
    assert (found.stop, found.logprobs, found.max_tokens) == (["a", "b"], 4, 9)


def test_what_is_left_out_is_the_checkpoints(processor: Processor) -> None:
    found = made(processor)
    assert found.sampling == Sampling(0.6, top_p=0.9, top_k=20, min_p=0.01, seed=7)
    assert found.penalties == Penalties(0, 0, 1.05, {})
    assert (found.stop, found.logprobs) == ([], None)
    assert found.max_tokens == 100 - len(processor([{"role": "user", "content": "BORA?"}]).input_ids)
    assert made(processor, top_k=-1, stop="x").sampling.top_k == 0
    assert made(processor, stop="x").stop == ["x"]


def test_who_gives_no_seed_is_answered_otherwise_each_time(processor: Processor) -> None:
    assert len({made(processor, seed=None).sampling.seed for _ in range(9)}) == 9
    assert made(processor, seed=-1).sampling.seed == 2**64 - 1


@pytest.mark.parametrize(
    ("fields", "param"), [({"max_tokens": 100}, "max_tokens"), ({"logit_bias": {"512": 1}}, "logit_bias")]
)
def test_what_does_not_fit_is_refused(processor: Processor, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        made(processor, **fields)
    assert caught.value.body.error.param == param


def test_tools_may_give_one_name_to_different_things(processor: Processor) -> None:
    """Each refers to its own definitions, and to itself."""
    tools = [
        Tool.model_validate({"type": "function", "function": {"name": name, "parameters": parameters}})
        for name, parameters in (
            ("zoom", {"properties": {"by": {"$ref": "#/$defs/Size"}}, "$defs": {"Size": {"enum": [1, 2]}}}),
            ("turn", {"properties": {"by": {"$ref": "#/$defs/Size"}}, "$defs": {"Size": {"enum": ["a"]}}}),
            ("nest", {"properties": {"in": {"$ref": "#"}}, "additionalProperties": False}),
            ("none", {}),
        )
    ]
    schema, grammar = call_schema(tools), Grammar(processor.tokenizer, processor.config)

    def holds(name: str, arguments: str) -> bool:
        constraint = grammar.json(schema)
        text = f'{{"name": "{name}", "arguments": {arguments}}}'
        try:
            for token in processor.tokenizer.encode(text, add_special_tokens=False).ids:
                constraint.accept(token)
        except UserError:
            return False
        return constraint.complete

    assert holds("zoom", '{"by": 2}')
    assert not holds("zoom", '{"by": "a"}')
    assert holds("turn", '{"by": "a"}')
    assert not holds("turn", '{"by": 2}')
    assert holds("nest", '{"in": {"in": {}}}')
    assert not holds("nest", '{"in": {"by": 2}}')
    assert holds("none", "{}")
