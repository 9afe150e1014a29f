"""A request's messages become the prompt its answer begins from."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.processor import Processor
from serve.arm.media import Limits
from serve.arm.prompt import _read
from serve.arm.schema import ChatRequest
from tests.conftest import ROOT

TOOL = {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object"}}}
TEMPLATES = ROOT / "tests" / "data"


@pytest.mark.parametrize(
    ("template", "choice", "end"),
    [
        ("qwen3_vl_chat_template.jinja", "auto", "<|im_start|>assistant\n"),
        ("qwen3_vl_chat_template.jinja", "required", "<|im_start|>assistant\n<tool_call>\n"),
        ("thinking_chat_template.jinja", "auto", "<|im_start|>assistant\n<think>\n"),
        # A call that is forced is not thought about; the thoughts that the template opens are closed first.
        ("thinking_chat_template.jinja", "required", "<think>\n\n</think>\n\n<tool_call>\n"),
    ],
)
def test_a_forced_call_is_begun(
    micro_checkpoint: Path, tmp_path: Path, template: str, choice: str, end: str
) -> None:
    folder = Path(shutil.copytree(micro_checkpoint, tmp_path / "checkpoint"))
    shutil.copyfile(TEMPLATES / template, folder / "chat_template.jinja")
    processor = Processor.load(folder)
    fields = {"messages": [{"role": "user", "content": "Closer!"}], "tools": [TOOL], "tool_choice": choice}
    arm: Any = SimpleNamespace(settings=SimpleNamespace(limits=Limits()))
    model: Any = SimpleNamespace(processor=processor)
    inputs = _read(arm, model, ChatRequest.model_validate(fields), [], [])
    assert processor.decode(inputs.input_ids, skip_special_tokens=False).endswith(end)


@pytest.mark.parametrize(
    ("given", "thoughts"),
    [
        ({"reasoning": "hm"}, "hm"),
        ({"reasoning_content": "hm"}, "hm"),
        ({"reasoning": "hm", "reasoning_content": "hm"}, "hm"),
        ({}, None),
    ],
)
def test_thoughts_are_sent_back_under_either_name(given: dict[str, str], thoughts: str | None) -> None:
    message = {"role": "assistant", "content": "4"} | given
    request = ChatRequest.model_validate({"messages": [message]})
    assert request.messages[0].thoughts == thoughts
    assert request.characters == len("4" + (thoughts or ""))
