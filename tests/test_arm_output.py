"""Thoughts, content and calls are told apart however the text is cut into pieces."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

from serve.arm.output import Output, Piece

CALL = '{"name": "zoom", "arguments": {"by": 2}}'
CASES = {
    "content": ("Red.\n\n Blue ", {}, [("content", "Red.\n\n Blue ")]),
    "thoughts": (
        "Let me see\n</think>\n\nRed. ",
        {"thinking": True},
        [("reasoning", "Let me see"), ("content", "Red. ")],
    ),
    "thoughts without end": ("Hm </thin", {"thinking": True}, [("reasoning", "Hm </thin")]),
    "tags of no meaning": ("a <tool_call> b", {}, [("content", "a <tool_call> b")]),
    "a call": (
        f"Closer. \n<tool_call>\n{CALL}\n</tool_call>",
        {"tools": True},
        [("content", "Closer."), ("call", '{"by": 2}')],
    ),
    "two calls": (
        f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>\n",
        {"tools": True},
        [("call", '{"by": 2}')] * 2,
    ),
    "a call cut short": (
        f"<tool_call>{CALL[:20]}",
        {"tools": True},
        [("content", CALL[:20])],
    ),
    "no call": ("<tool_call>zoom in!</tool_call>", {"tools": True}, [("content", "zoom in!")]),
    "forced": (CALL, {"tools": True, "forced": True}, [("call", '{"by": 2}')]),
    "thoughts and a call": (
        f"why not</think>\n\n<tool_call>\n{CALL}\n</tool_call>",
        {"thinking": True, "tools": True},
        [("reasoning", "why not"), ("call", '{"by": 2}')],
    ),
    "less-than": ("1 < 2 <3", {"tools": True}, [("content", "1 < 2 <3")]),
}


def merged(pieces: list[Piece]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for piece in pieces:
        if piece.kind != "call" and found and found[-1][0] == piece.kind:
            found[-1] = (piece.kind, found[-1][1] + piece.text)
        else:
            found.append((piece.kind, piece.text))
    return found


@pytest.mark.parametrize("name", CASES)
def test_cut_anywhere(name: str) -> None:
    text, options, expected = CASES[name]
    random = np.random.default_rng(0)
    for pieces in (1, 2, 5, len(text)):
        cuts = (
            sorted(random.integers(0, len(text), pieces - 1).tolist())
            if pieces < len(text)
            else range(len(text))
        )
        edges = [0, *cuts, len(text)]
        output = Output(**{"thinking": False, "tools": False, **options})
        found = [piece for a, b in pairwise(edges) for piece in output.feed(text[a:b])]
        assert merged(found + output.close()) == expected


def test_a_call_carries_its_name_and_arguments() -> None:
    output = Output(thinking=False, tools=True)
    (call,) = output.feed(f"<tool_call>{CALL}</tool_call>")
    assert call.name == "zoom"
    assert json.loads(call.text) == {"by": 2}
