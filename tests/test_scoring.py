"""Every metric on answers made by hand: right, nearly right, wrong and malformed."""

from __future__ import annotations

import json

import pytest

from bench.scoring import METRICS, SECONDS, is_correct, score

RECEIPT = json.dumps({"shop": "Tea Room", "items": [{"name": "Milk", "price": 1.5}], "total": 3.0})
ORDER = json.dumps({"town": "Perth", "express": True, "items": [{"article": "kettles", "quantity": 3}]})
CALL = json.dumps({"name": "get_weather", "arguments": {"town": "Osaka", "days": 3}})
TURNED = json.dumps(["B. a cup", "A. a cup"])
TEN = json.dumps(["coca cola"] * 2 + ["Coke"] * 7 + ["a Pepsi"])


@pytest.mark.parametrize(
    ("metric", "text", "answer", "expected"),
    [
        ("exact", " Red\n", "Red", 1),
        ("exact", "red", "Red", 0),
        ("words", "The Red  Cup.", "the red cup", 1),
        ("words", "red", "red cup", 0),
        ("words", "", "none", 0),
        ("choice", "B", "B", 1),
        ("choice", " (b) ", "B", 1),
        ("choice", "B. There is a red cup", "B", 1),
        ("choice", "A", "B", 0),
        ("choice", "A. or B. maybe", "A", 0),
        ("choice", "A red cup", "A", 0),
        ("choice", "", "A", 0),
        ("circular", '["B", "(a)"]', TURNED, 1),
        ("circular", '["B", "B"]', TURNED, 0),
        ("circular", '["A", "A"]', TURNED, 0),
        ("circular", '["B"]', TURNED, 0),
        ("circular", '["B", "A", "A"]', TURNED, 0),
        ("circular", "[7, null]", TURNED, 0),
        ("circular", "B", TURNED, 0),
        ("count", "There are 7.", "7", 1),
        ("count", "Seven", "7", 1),
        ("count", "9,482", "9482", 1),
        ("count", "7 or 8", "7", 0),
        ("count", "a few", "7", 0),
        ("count", "1" * 5000, "7", 0),
        ("number", "about 104", "100", 1),
        ("number", "$95.00", "100", 1),
        ("number", "106", "100", 0),
        ("number", "90 to 110", "100", 0),
        ("number", "many", "100", 0),
        ("relaxed", "52.4%", "50", 1),
        ("relaxed", "53", "50", 0),
        ("relaxed", "0", "0", 1),
        ("relaxed", "Norway", "norway", 1),
        ("relaxed", "nan", "50", 0),
        ("characters", "abcd", "abcd", 1),
        ("characters", "abxd", "abcd", 0.75),
        ("characters", "ab\ncd", "ab cd", 1),
        ("characters", "e\u0301t\u00e9", "\u00e9te\u0301", 1),
        ("characters", "", "abcd", 0),
        ("characters", "something much longer", "abcd", 0),
        ("characters", "春のうみ", "春の海", 1 / 3),
        ("box", '{"bbox_2d": [0, 0, 100, 100]}', "[0, 0, 100, 100]", 1),
        ("box", '```json\n[{"bbox_2d": [50, 0, 150, 100], "label": "cup"}]\n```', "[0, 0, 100, 100]", 1 / 3),
        ("box", "<box>(0,0),(100,50)</box>", "[0, 0, 100, 100]", 0.5),
        ("box", "[200, 200, 300, 300]", "[0, 0, 100, 100]", 0),
        ("box", "[100, 100, 0, 0]", "[0, 0, 100, 100]", 0),
        ("box", "[0,0,100,100] and [1,1,9,9]", "[0, 0, 100, 100]", 0),
        ("box", "top left", "[0, 0, 100, 100]", 0),
        ("fields", RECEIPT, RECEIPT, 1),
        (
            "fields",
            '```json\n{"shop": "TEA ROOM", "items": [{"name": "milk", "price": "€1.50"}], "total": 3}\n```',
            RECEIPT,
            1,
        ),
        ("fields", '{"shop": "Tea Room", "total": 3.0}', RECEIPT, 2 * 2 / (2 + 4)),
        ("fields", '{"shop": "Tea Room", "total": true}', RECEIPT, 2 * 1 / (2 + 4)),
        ("fields", '{"total": 1' + "0" * 400 + "}", RECEIPT, 0),
        ("fields", "[1, 2]", RECEIPT, 0),
        ("fields", '{"shop": "Tea Room"', RECEIPT, 0),
        ("strict_json", ORDER, ORDER, 1),
        ("strict_json", ORDER.replace("Perth", "Leeds"), ORDER, 0.5),
        ("strict_json", ORDER.replace("true", '"true"'), ORDER, 0),
        ("strict_json", ORDER.replace("3}", "3, note: 1}"), ORDER, 0),
        ("strict_json", f"```json\n{ORDER}\n```", ORDER, 0),
        ("strict_json", "[" * 100_000, ORDER, 0),
        ("strict_json", "1" * 5000, ORDER, 0),
        ("tool_call", f"<tool_call>\n{CALL}\n</tool_call>", CALL, 1),
        ("tool_call", f"<tool_call>{CALL.replace('3', '4')}</tool_call>", CALL, 0.5),
        ("tool_call", f"<tool_call>{CALL.replace('get_weather', 'book_room')}</tool_call>", CALL, 0),
        ("tool_call", f"<tool_call>{CALL.replace('3', 'null')}</tool_call>", CALL, 0),
        ("tool_call", f"<tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", CALL, 0),
        ("tool_call", CALL, CALL, 0),
        ("sequence", "Star, cup, boat.", "star, cup, boat", 1),
        ("sequence", "star -> cup -> boat", "star, cup, boat", 1),
        ("sequence", "cup, star, boat", "star, cup, boat", 0),
        ("sequence", "", "star, cup, boat", 0),
        ("recall", "12345, 67890", '["12345", "67890"]', 1),
        ("recall", "They are 12345 and 678901.", '["12345", "67890"]', 0.5),
        ("recall", "", '["12345", "67890"]', 0),
        ("token_f1", "The town council", "the town council", 1),
        ("token_f1", "town", "the town council", 2 / 3),
        ("token_f1", "a baker", "the town council", 0),
        ("seconds", "3.0 seconds", "3", 1),
        ("seconds", "4", "3", 1 - 1 / SECONDS),
        ("seconds", "30", "3", 0),
        ("seconds", "between 2 and 4", "3", 0),
        ("seconds", "soon", "3", 0),
        ("anls", "Philip Morris", '["philip morris", "PM"]', 1),
        ("anls", "Philip Moris", '["philip morris"]', 12 / 13),
        ("anls", "Lorillard", '["philip morris"]', 0),
        ("anls", "", '["philip morris"]', 0),
        ("vqa", "coke", TEN, 1),
        ("vqa", "Coca Cola", TEN, (2 * 1 / 3 + 8 * 2 / 3) / 10),
        ("vqa", "pepsi", TEN, (9 * 1 / 3) / 10),
        ("vqa", "water", TEN, 0),
        ("contains", "It says CENTRE.", '["centre"]', 1),
        ("contains", "It says CENTER.", '["centre"]', 0),
        ("contains_formula", "x ^ 2 + Y", '["x^2+Y"]', 1),
        ("contains_formula", "x^2+y", '["x^2+Y"]', 0),
    ],
)
def test_by_hand(metric: str, text: str, answer: str, expected: float) -> None:
    assert score(metric, text, answer) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("metric", "value", "right"),
    [
        ("words", 1.0, True),
        ("characters", 0.99, False),
        ("box", 0.5, True),
        ("box", 0.49, False),
        ("seconds", 0.5, True),
    ],
)
def test_what_counts_as_right(metric: str, value: float, right: bool) -> None:
    assert is_correct(metric, value) is right


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00",
        "]}{[",
        "<tool_call>",
        '{"a": NaN}',
        "∞ ۱۲۳",
        "(" * 9999,
        "-" * 9999,
        "1e999",
        '{"a":' * 5000,
    ],
)
def test_nothing_that_is_said_raises(metric: str, text: str) -> None:
    answers = {"fields": RECEIPT, "strict_json": ORDER, "tool_call": CALL, "box": "[0, 0, 1, 1]", "vqa": TEN}
    listed = metric in ("anls", "circular", "recall", "contains", "contains_formula")
    assert 0 <= score(metric, text, answers.get(metric, '["7"]' if listed else "7")) <= 1
