"""Takes an answer apart as it comes: thoughts, content, and calls of tools, by the tags Qwen writes.

<think> ... </think>  content  <tool_call>{"name": ..., "arguments": {...}}</tool_call>
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from engines.thoughts import THOUGHT

CALL, CALLED = "<tool_call>", "</tool_call>"


@dataclass(frozen=True)
class Piece:
    """Some text of one kind. Of a call, `text` is its arguments (JSON) and `name` the tool's."""

    kind: Literal["reasoning", "content", "call"]
    text: str
    name: str = ""


class Output:
    """State of one answer. White space beside a tag belongs to the tag, all other is kept."""

    def __init__(self, *, thinking: bool, tools: bool, forced: bool = False) -> None:
        """thinking: the answer begins within its thoughts. forced: it is the inside of a call and no more."""
        self._kind: Literal["reasoning", "content", "call"] = "call" if forced else "content"
        if thinking:
            self._kind = "reasoning"
        self._tools = tools
        self._held = ""
        self._after_tag = thinking

    def feed(self, text: str) -> list[Piece]:
        """What `text` made certain."""
        self._held += text
        pieces: list[Piece] = []
        while True:
            if self._after_tag:
                self._held = self._held.lstrip()
            tag = {"reasoning": THOUGHT, "content": CALL if self._tools else "", "call": CALLED}[self._kind]
            at = self._held.find(tag) if tag else -1
            if at < 0:
                break
            pieces += self._piece(self._held[:at].rstrip())
            self._held = self._held[at + len(tag) :]
            self._kind = "call" if tag == CALL else "content"
            self._after_tag = True
        if self._kind != "call":
            certain = len(self._held) - _unsure(self._held, tag)
            pieces += self._piece(self._held[:certain])
            self._held = self._held[certain:]
        return pieces

    def close(self) -> list[Piece]:
        """What is left when no more text comes."""
        held, self._held = self._held, ""
        return self._piece(held)

    def _piece(self, text: str) -> list[Piece]:
        if not text:
            return []
        self._after_tag = False
        if self._kind != "call":
            return [Piece(self._kind, text)]
        return [_call(text)]


def _call(text: str) -> Piece:
    """A call, or content when the model wrote none that can be read."""
    try:
        call = json.loads(text)
        return Piece("call", json.dumps(call["arguments"], ensure_ascii=False), str(call["name"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return Piece("content", text)


def _unsure(text: str, tag: str) -> int:
    """Length of the end of `text` that may belong to a tag: white space, then the tag's beginning."""
    if not tag:
        return 0
    longest = min(len(tag) - 1, len(text))
    start = next((size for size in range(longest, 0, -1) if text.endswith(tag[:size])), 0)
    before = text[: len(text) - start]
    return start + len(before) - len(before.rstrip())
