"""From a request's messages to a prompt the scheduler takes: media fetched, read, tokenised and seen.

Nothing of this holds up a running stream: reading is the readers' work, seeing the vision thread's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image

from engines.errors import UserError
from engines.onnx_vision import VisionTokens
from engines.processor import Inputs
from engines.thoughts import THOUGHT, thinking
from serve.arm.arm import Arm
from serve.arm.body import held
from serve.arm.errors import ApiError
from serve.arm.media import load, read_images, video_files
from serve.arm.model import Model
from serve.arm.output import CALL
from serve.arm.schema import ChatRequest, ImagePart, Message, VideoPart
from serve.arm.turns import Client


async def prepare(
    arm: Arm, model: Model, request: ChatRequest, client: Client, place: ExitStack
) -> tuple[Inputs, VisionTokens]:
    """The prompt and what the vision tower sees in it; ApiError for media or messages that cannot be used.

    Pixels and features of many pictures fill a memory: `place` is to be left once they have been computed.
    """
    loop = asyncio.get_running_loop()
    if request.characters > model.most_characters:  # to find its tokens might take minutes
        raise _too_long(f"{request.characters} characters", model)
    with held(arm) as count:  # of files that are fetched
        images, videos = await _load(arm, request, count)
        if images or videos:
            place.enter_context(await arm.seeing.enter(client))
        inputs = await loop.run_in_executor(arm.readers, _read, arm, model, request, images, videos)
    if len(inputs.input_ids) >= model.slots.capacity:
        raise _too_long(f"{len(inputs.input_ids)} tokens", model)
    if not inputs.media:
        return inputs, model.slots.see(inputs)
    start = time.perf_counter()
    try:
        vision = await loop.run_in_executor(arm.eyes, model.slots.see, inputs)
    except UserError as error:
        raise ApiError(400, str(error), param="messages") from None
    arm.metrics.vision.observe(time.perf_counter() - start)
    arm.metrics.media.inc(len(inputs.media))
    arm.metrics.media_remembered.inc(vision.remembered)
    return inputs, vision


def _too_long(size: str, model: Model) -> ApiError:
    message = f"the prompt has {size}, the context {model.slots.capacity} tokens: shorten it"
    return ApiError(400, message, param="messages", code="context_length_exceeded")


async def _load(
    arm: Arm, request: ChatRequest, count: Callable[[int], None]
) -> tuple[list[bytes], list[bytes]]:
    """The files of all images and all videos, in order."""
    parts = [
        part for message in request.messages if isinstance(message.content, list) for part in message.content
    ]
    images = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
    videos = [part.video_url.url for part in parts if isinstance(part, VideoPart)]
    limits = arm.settings.limits
    if len(images) + len(videos) > limits.max_media:
        raise ApiError(
            400,
            f"{len(images) + len(videos)} pictures and videos: at most {limits.max_media} are accepted",
            param="messages",
        )
    found = [await load(url, limits, count) for url in [*images, *videos]]
    return found[: len(images)], found[len(images) :]


def _read(arm: Arm, model: Model, request: ChatRequest, images: list[bytes], videos: list[bytes]) -> Inputs:
    """Inputs of a request whose files are there."""
    limits = arm.settings.limits
    tools = [tool.model_dump(exclude_none=True) for tool in request.offered_tools]
    with video_files(videos, limits) as paths:
        media = iter(read_images(images, limits)), iter(paths)
        messages = [plain(message, *media) for message in request.messages]
        try:
            inputs = model.processor(messages, tools=tools or None)
        except UserError as error:
            raise ApiError(400, str(error), param="messages") from None
    if request.forced_tools:  # the answer is the inside of a call: nothing else can follow, and no thoughts
        opening = f"\n{THOUGHT}\n\n{CALL}\n" if thinking(model.processor, inputs) else f"{CALL}\n"
        inputs = inputs.extend(model.processor.tokenizer.encode(opening, add_special_tokens=False).ids)
    return inputs


def plain(message: Message, images: Iterator[Image.Image], videos: Iterator[Path]) -> dict[str, Any]:
    """A message as the processor takes it, each picture and video in its place."""
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": _content(message, images, videos)}
    fields = {"name": message.name, "tool_call_id": message.tool_call_id}
    fields["reasoning_content"] = message.thoughts  # as templates call it
    found |= {name: value for name, value in fields.items() if value is not None}
    if message.tool_calls:
        found["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    return found


def _content(
    message: Message, images: Iterator[Image.Image], videos: Iterator[Path]
) -> str | Sequence[dict[str, Any]]:
    if not isinstance(message.content, list):
        return message.content or ""
    parts: list[dict[str, Any]] = []
    for part in message.content:
        if isinstance(part, ImagePart):
            parts.append({"type": "image", "image": next(images)})
        elif isinstance(part, VideoPart):
            parts.append({"type": "video", "video": str(next(videos))})
        else:
            parts.append({"type": "text", "text": part.text})
    return parts
