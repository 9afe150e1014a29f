"""What a Thinking checkpoint thinks before it answers: <think> ... </think> answer, as Qwen writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engines.processor import Inputs, Processor

THINK, THOUGHT = "<think>", "</think>"


def thinking(processor: Processor, inputs: Inputs) -> bool:
    """Whether the template has opened the answer's thoughts, as that of a Thinking checkpoint does."""
    end = processor.decode(inputs.input_ids[-16:], skip_special_tokens=False)
    return end.rstrip().endswith(THINK)


def answer(text: str, opened: bool) -> str:
    """What is said after the thoughts; nothing where they never end. opened: the prompt began them."""
    if not opened and not text.lstrip().startswith(THINK):
        return text
    return text.partition(THOUGHT)[2].lstrip()
