"""Prompt text against transformers' apply_chat_template, and the messages that are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers.utils.chat_template_utils import render_jinja_template

from engines.chat import ChatTemplate, MediaPart, split_media
from engines.errors import UserError
from tests.references import reference_processor

DATA = Path(__file__).parent / "data"
TEMPLATES = {"published": "qwen3_vl_chat_template.jinja", "thinking": "thinking_chat_template.jinja"}
PICTURE = Image.new("RGB", (32, 32))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter — how is it? <b>&",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [{"role": "user", "content": "What is 2 + 2? <tag> & 'quotes' 数"}],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]},
    ],
    "system in parts": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Hi"},
    ],
    "images": [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": PICTURE},
                {"type": "text", "text": "and"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                {"type": "text", "text": "differ how?"},
            ],
        }
    ],
    "several turns": [
        {"role": "user", "content": [{"type": "video", "video": [PICTURE, PICTURE], "fps": 2}]},
        {"role": "assistant", "content": "A clip."},
        {
            "role": "user",
            "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "And this?"}],
        },
    ],
    "tools": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather in Bern?"},
        {
            "role": "assistant",
            "content": "",
            "name": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}},
                {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}},
            ],
        },
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": [{"type": "text", "text": "rain "}, {"type": "image", "image": PICTURE}]},
    ],
    "thoughts": [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "two pairs"},
        {"role": "user", "content": "Minus 3?"},
        {"role": "assistant", "content": "<think>\none is left\n</think>\n\n1"},
        {"role": "tool", "content": "right"},
    ],
}


def folder_with(tmp_path: Path, micro_checkpoint: Path, template: str) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((micro_checkpoint / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    return tmp_path


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("source", [*TEMPLATES, "micro"])
def test_prompt_equals_apply_chat_template(
    tmp_path: Path, micro_checkpoint: Path, source: str, conversation: str, add_generation_prompt: bool
) -> None:
    template = micro_checkpoint / "chat_template.jinja" if source == "micro" else DATA / TEMPLATES[source]
    folder = folder_with(tmp_path, micro_checkpoint, template.read_text())
    messages = CONVERSATIONS[conversation]
    tools = TOOLS if conversation == "tools" else None
    expected = reference_processor(folder, {}, {}).apply_chat_template(
        messages, tools=tools, add_generation_prompt=add_generation_prompt
    )
    plain, _ = split_media(messages)
    found = ChatTemplate.load(folder).render(plain, tools=tools, add_generation_prompt=add_generation_prompt)
    assert found == expected
    assert "<|im_start|>user\n" in found


def test_thoughts_of_finished_turns_are_left_out(tmp_path: Path, micro_checkpoint: Path) -> None:
    """As published Thinking templates have it; those of the turn that goes on stay."""
    folder = folder_with(tmp_path, micro_checkpoint, (DATA / TEMPLATES["thinking"]).read_text())
    found = ChatTemplate.load(folder).render(CONVERSATIONS["thoughts"])
    assert "two pairs" not in found
    assert "<think>\none is left\n</think>\n\n1<|im_end|>" in found
    assert found.endswith("<|im_start|>assistant\n<think>\n")


SNIPPETS = {
    "special tokens": "{{ eos_token }}{{ pad_token }}{{ bos_token }}",
    "tojson": "{{ messages | tojson(indent=2, sort_keys=true) }}",
    "tojson separators": "{{ messages | tojson(separators=(',', ':')) }}",
    "loop controls": "{% for m in messages %}{% if m.content == 'ü' %}{% break %}{% endif %}x{% endfor %}",
    "trimmed blocks": "  {% if true %}\n  kept\n  {% endif %}\n end",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "date": "{{ strftime_now('%Y') }}",
    "no html escapes": "{{ '<&>' }}{{ '<&>' | tojson }}",
    "undefined is empty": "[{{ nothing }}]",
}


@pytest.mark.parametrize("name", SNIPPETS)
def test_environment_equals_transformers(tmp_path: Path, micro_checkpoint: Path, name: str) -> None:
    folder = folder_with(tmp_path, micro_checkpoint, SNIPPETS[name])
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "ü"}]
    special = reference_processor(folder, {}, {}).tokenizer.special_tokens_map
    expected, _ = render_jinja_template([messages], chat_template=SNIPPETS[name], **special)
    assert ChatTemplate.load(folder).render(messages, add_generation_prompt=False) == expected[0]


@pytest.mark.parametrize("place", ["chat_template.json", "tokenizer_config.json", "named"])
def test_template_is_found_where_older_checkpoints_keep_it(tmp_path: Path, place: str) -> None:
    template: Any = "{{ messages[0].content }}!"
    if place == "named":
        template = [{"name": "rag", "template": "no"}, {"name": "default", "template": template}]
    path = tmp_path / ("tokenizer_config.json" if place == "named" else place)
    path.write_text(json.dumps({"chat_template": template}))
    assert ChatTemplate.load(tmp_path).render([{"role": "user", "content": "hi"}]) == "hi!"


def test_jinja_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("first")
    (tmp_path / "chat_template.json").write_text('{"chat_template": "second"}')
    assert ChatTemplate.load(tmp_path).render([]) == "first"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "has no chat template: expected chat_template.jinja"),
        ("{% if %}", "the chat template is broken"),
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{{ messages[0].content + 1 }}", "refuses these messages"),
        ("{{ messages[0].nothing.more }}", "refuses these messages: .* has no attribute 'nothing'"),
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: .* unsafe"),
        ("{{ messages.append(1) }}", "refuses these messages: .* unsafe"),
    ],
)
def test_broken_and_hostile_templates(tmp_path: Path, template: str | None, message: str) -> None:
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=message):
        ChatTemplate.load(tmp_path).render([{"role": "user", "content": "hi"}])


def test_media_are_listed_in_order() -> None:
    _, media = split_media(CONVERSATIONS["several turns"])
    assert media == [MediaPart("video", [PICTURE, PICTURE], 2), MediaPart("image", "a.png")]
    _, media = split_media(CONVERSATIONS["images"])
    assert media == [MediaPart("image", PICTURE), MediaPart("image", "data:image/png;base64,AAAA")]


def test_messages_are_left_as_they_were() -> None:
    messages = [{"role": "user", "name": None, "content": [{"type": "image", "image": PICTURE}]}]
    split_media(messages)
    assert messages == [{"role": "user", "name": None, "content": [{"type": "image", "image": PICTURE}]}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages are str: expected a list"),
        ({"role": "user"}, "messages are dict"),
        ([], "expected a list of one message or more"),
        (["hi"], "message 0 is no object with a role"),
        ([{"content": "hi"}], "message 0 is no object with a role"),
        ([{"role": "user", "content": 3}], "message 0 has a content of int"),
        ([{"role": "user", "content": ["hi"]}], "message 0, part 0 has type None"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "part 0 has type 'audio': expected text, image"),
        ([{"role": "user", "content": [{"type": "text"}]}], "part 0 has type 'text'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "part 0 is of type image but holds none"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "image_url but holds none"),
        ([{"role": "user", "content": "see <|image_pad|>"}], r"message 0 holds the literal token <\|image_"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "<|video_pad|>"}]}],
            r"message 0, part 0 holds the literal token <\|video_pad\|>",
        ),
    ],
)  # fmt: skip
def test_refuses_other_messages(messages: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_media(messages)
