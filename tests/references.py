"""transformers' own Qwen3-VL preprocessing, put together without torchvision, as the tests' yardstick."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.image_processing_backends import TorchvisionBackend
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

# The package's lazy front refuses the name without torchvision; the module itself imports.
video_module = importlib.import_module("transformers.models.qwen3_vl.video_processing_qwen3_vl")


class StandIn(TorchvisionBackend):  # type: ignore[misc]
    """The torchvision calls of the video path: per-channel normalisation as there, resizing by Pillow."""

    def normalize(self, image: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, **_: Any) -> torch.Tensor:
        return image.sub(mean[:, None, None]).div_(std[:, None, None])

    def resize(self, image: torch.Tensor, size: Any, resample: Any, **_: Any) -> torch.Tensor:
        frames = image.flatten(0, 1).permute(0, 2, 3, 1).numpy()
        resized = [Image.fromarray(frame).resize((size.width, size.height), resample) for frame in frames]
        stacked = torch.from_numpy(np.stack([np.array(frame) for frame in resized]))
        return stacked.permute(0, 3, 1, 2).unflatten(0, image.shape[:2])


class ReferenceVideoProcessor(video_module.Qwen3VLVideoProcessor, StandIn):  # type: ignore[misc, name-defined]
    """Qwen3VLVideoProcessor; its base class reaches torchvision only through StandIn."""

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        return video  # the tests' frames are RGB


class ReferenceProcessor(Qwen3VLProcessor):  # type: ignore[misc]
    """Qwen3VLProcessor without the check of its parts' classes, which needs torchvision's mapping."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


def reference_processor(folder: Path, images: dict[str, Any], videos: dict[str, Any]) -> Qwen3VLProcessor:
    """Qwen3VLProcessor with the folder's tokenizer and chat template, and the given preprocessor settings."""
    return ReferenceProcessor(
        Qwen2VLImageProcessorPil(**images),
        AutoTokenizer.from_pretrained(folder),
        ReferenceVideoProcessor(**{"cap_pixels_per_frame": False, **videos}),
        chat_template=(folder / "chat_template.jinja").read_text(),
    )
