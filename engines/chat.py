"""Chat templates and messages: from OpenAI or Hugging Face form to the model's prompt text, rendered as
transformers' apply_chat_template does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engines.config import read_json
from engines.errors import UserError
from engines.tokenizer import IMAGE_PAD, VIDEO_PAD


@dataclass(frozen=True)
class MediaPart:
    """An image or video of a message, not yet loaded. fps belongs to a video given as frames."""

    kind: str
    source: Any
    fps: float | None = None


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template with the special tokens it may print."""

    template: jinja2.Template
    special_tokens: dict[str, str]

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate:
        """The folder's chat_template.jinja, or chat_template.json's or tokenizer_config.json's entry."""
        directory = Path(directory)
        path = directory / "tokenizer_config.json"
        tokenizer_config = read_json(path) if path.exists() else {}
        try:
            template = _environment().from_string(_read_template(directory, tokenizer_config))
        except UserError:
            raise
        except Exception as error:  # a template is a program: it may fail in any way, as may its compiler
            raise UserError(f"{directory}: the chat template is broken: {error}") from None
        special = {
            name: _token_text(value) for name, value in tokenizer_config.items() if name.endswith("_token")
        }
        return cls(template, {name: text for name, text in special.items() if text is not None})

    def render(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """The prompt text; UserError when the template refuses the messages."""
        try:
            return self.template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except Exception as error:  # as above
            raise UserError(f"the chat template refuses these messages: {error}") from None


def split_media(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[MediaPart]]:
    """Messages as the template reads them, and the images and videos they hold, in order of appearance.

    Raises UserError for messages of another form and for text holding a literal media placeholder.
    """
    if isinstance(messages, str | dict) or not isinstance(messages, Sequence) or not messages:
        raise UserError(f"messages are {type(messages).__name__}: expected a list of one message or more")
    plain, media = [], []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"message {i} is no object with a role: expected {{'role': ..., 'content': ...}}")
        # Clients send null for what they leave out; templates would print it as None.
        message = {key: value for key, value in message.items() if value is not None}
        content = message.get("content")
        if isinstance(content, list):
            parts = [_plain_part(part, f"message {i}, part {j}") for j, part in enumerate(content)]
            media += [part for _, part in parts if part]
            message["content"] = [part for part, _ in parts]
        elif isinstance(content, str):
            _check_text(content, f"message {i}")
        elif content is not None:
            raise UserError(
                f"message {i} has a content of {type(content).__name__}: expected text or a list of parts"
            )
        plain.append(message)
    return plain, media


def _plain_part(part: Any, where: str) -> tuple[dict[str, Any], MediaPart | None]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        _check_text(part["text"], where)
        return {"type": "text", "text": part["text"]}, None
    if kind == "image_url":
        reference = part.get("image_url")
        source = reference.get("url") if isinstance(reference, dict) else reference
    elif kind in ("image", "video"):
        source = next((part[key] for key in (kind, "url", "path") if part.get(key) is not None), None)
    else:
        raise UserError(
            f"{where} has type {kind!r}: expected text, image, image_url or video, each with its content"
        )
    if source is None:
        raise UserError(f"{where} is of type {kind} but holds none: expected it under {kind!r}")
    kind = "video" if kind == "video" else "image"
    # Templates look at which keys are there, never into the picture.
    return {"type": kind, kind: ""}, MediaPart(kind, source, part.get("fps"))


def _check_text(text: str, where: str) -> None:
    for placeholder in (IMAGE_PAD, VIDEO_PAD):
        if placeholder in text:
            raise UserError(
                f"{where} holds the literal token {placeholder}, which stands for media: remove it"
            )


def _read_template(directory: Path, tokenizer_config: dict[str, Any]) -> str:
    path = directory / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
    path = directory / "chat_template.json"
    template = (read_json(path) if path.is_file() else tokenizer_config).get("chat_template")
    if isinstance(template, list):  # several named templates
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str):
        raise UserError(
            f"{directory} has no chat template: expected chat_template.jinja or chat_template.json"
        )
    return template


def _token_text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


class _Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; in a prompt it prints its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """transformers' settings: templates come with checkpoints, so they run sandboxed."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which a prompt must not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
