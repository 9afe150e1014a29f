"""Answers that programs read: JSON of a given form, and calls of tools."""

from __future__ import annotations

import json
import random
from typing import Any

from bench.suites.items import Make, ask
from bench.tasks import Item

NAMES = (
    "Amara Okafor",
    "Li Wei",
    "Jonas Berg",
    "Sofía Ramos",
    "Yuki Tanaka",
    "Omar Haddad",
    "Eva Novák",
    "Tom O'Neill",
)
GOODS = ("desk lamps", "notebooks", "ladders", "kettles", "tents", "headphones", "garden chairs", "door keys")
TOWNS = ("Bergen", "Lisbon", "Osaka", "Quito", "Tartu", "Perth", "Leeds", "Dakar")

# As Qwen's chat template tells a model of its tools; tests/test_suites.py holds it to the template.
PREAMBLE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{}
</tools>

For each function call, return a json object with function name and arguments within \
<tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def _tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    kinds = {key: {"type": kind} for key, kind in properties.items()}
    parameters = {"type": "object", "properties": kinds, "required": list(properties)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


TOOLS = [
    _tool("get_weather", "Weather forecast of a town", town="string", days="integer"),
    _tool(
        "book_room",
        "Reserve a hotel room",
        town="string",
        nights="integer",
        guests="integer",
        breakfast="boolean",
    ),
    _tool(
        "place_order",
        "Order goods from the warehouse",
        article="string",
        quantity="integer",
        express="boolean",
    ),
    _tool("set_reminder", "Remind the user of something", text="string", hour="integer", minute="integer"),
]


def document(rng: random.Random) -> Item:
    """A message turned into JSON of the asked form."""
    name, town = rng.choice(NAMES), rng.choice(TOWNS)
    bought = [(goods, rng.randint(2, 60)) for goods in rng.sample(GOODS, rng.randint(1, 3))]
    express = rng.random() < 0.5
    listed = " and ".join(f"{quantity} {goods}" for goods, quantity in bought)
    hurry = (
        "It is urgent, send it by express please." if express else "There is no hurry, normal post will do."
    )
    letter = f"Hello, I would like to order {listed}. Please deliver to {town}. {hurry} Regards, {name}"
    question = (
        f"{letter}\n\nWrite this order as JSON with exactly these keys: customer (string), town (string), "
        "express (boolean), items (list of objects with article (string) and quantity (number)). "
        "Answer with the JSON only, without a code fence."
    )
    items = [{"article": goods, "quantity": quantity} for goods, quantity in bought]
    answer = {"customer": name, "town": town, "express": express, "items": items}
    return Item.make("json", ask(question), json.dumps(answer, ensure_ascii=False), 0.0, "strict_json")


def tool(rng: random.Random) -> Item:
    """One of four tools fits what the user wants."""
    town, nights, hour, minute = rng.choice(TOWNS), rng.randint(2, 9), rng.randint(6, 22), rng.randint(1, 59)
    goods, quantity, express = rng.choice(GOODS), rng.randint(2, 60), rng.random() < 0.5
    wish, name, arguments = rng.choice(
        (
            (
                f"What will the weather be like in {town} over the next {nights} days?",
                "get_weather",
                {"town": town, "days": nights},
            ),
            (
                f"Two of us will be in {town} and need a room for {nights} nights, "
                f"{'with' if express else 'without'} breakfast.",
                "book_room",
                {"town": town, "nights": nights, "guests": 2, "breakfast": express},
            ),
            (
                f"Please order {quantity} {goods}, {'by express' if express else 'not by express'}.",
                "place_order",
                {"article": goods, "quantity": quantity, "express": express},
            ),
            (
                f'Remind me at {hour}:{minute:02} with the text "Call {town}".',
                "set_reminder",
                {"text": f"Call {town}", "hour": hour, "minute": minute},
            ),
        )
    )
    messages = [{"role": "system", "content": PREAMBLE.format("\n".join(map(json.dumps, TOOLS)))}, *ask(wish)]
    answer = json.dumps({"name": name, "arguments": arguments})
    return Item.make("tool", messages, answer, 0.0, "tool_call")


TASKS: dict[str, Make] = {"json": document, "tool": tool}
