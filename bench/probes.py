"""Conversations that show a processor at work: pictures that must be resized, a video, a system's words."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

Message = dict[str, Any]


def probes() -> list[list[Message]]:
    """The same at every call. Sizes are odd, so that every processor resizes: up, down, and out of shape."""
    frames = [picture(53, 37, i / 8) for i in range(8)]
    text: Message = {"role": "user", "content": "What is the answer?"}
    return [
        [{"role": "system", "content": "Be brief."}, text, {"role": "assistant", "content": "42."}, text],
        [show({"type": "image", "image": picture(53, 37, 0.0)})],
        [show({"type": "image", "image": picture(301, 203, 0.5)})],
        [
            show(
                {"type": "image", "image": picture(7, 9, 0.2)},
                {"type": "image", "image": picture(90, 41, 0.7)},
            )
        ],
        [show({"type": "video", "video": frames, "fps": 2.0})],
        [show({"type": "video", "video": frames[:5], "fps": 4.0})],
    ]


def show(*media: Message) -> Message:
    """A question about some media."""
    return {"role": "user", "content": [*media, {"type": "text", "text": "What is it?"}]}


def picture(width: int, height: int, phase: float) -> Image.Image:
    """Rings that grow finer outwards, with an edge: every filter leaves its own mark."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    rings = np.sin(40 * (x + phase) ** 2 + 60 * y**2)
    channels = [rings, np.where(x > y, rings, -rings), np.cos(25 * x * y + 6 * phase)]
    return Image.fromarray(np.uint8(127.5 * (np.stack(channels, axis=-1) + 1)))
