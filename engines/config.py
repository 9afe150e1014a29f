"""Typed view of a Qwen3-VL checkpoint's config.json (and the stop tokens of its generation_config.json)."""

from __future__ import annotations

import json
from math import isqrt
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from engines.errors import UserError

ARCHITECTURE = "Qwen3VLForConditionalGeneration"
Layers = Annotated[int, Field(gt=0, le=1000)]  # every one of them is looked for


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; a missing file, bad JSON or anything but an object is a UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: a checkpoint folder in the Hugging Face layout has it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def validation_message(error: ValidationError) -> str:
    """The first problem pydantic found, on one line: `text_config.head_dim: Field required`."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    what = first["msg"].removeprefix("Value error, ")  # our own words
    return f"{where}: {what}{more}" if where else f"{what}{more}"


class _Section(BaseModel):
    # Extra keys are allowed: config.json carries training-time settings that change nothing here.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TextConfig(_Section):
    """The decoder. Defaults are transformers' own, for keys that published files may leave out."""

    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: Layers
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt = 128
    max_position_embeddings: PositiveInt = 128000
    rms_norm_eps: PositiveFloat = 1e-6
    rope_theta: PositiveFloat = 500000.0
    mrope_section: tuple[PositiveInt, PositiveInt, PositiveInt] = (24, 20, 20)
    # Named so that a checkpoint which needs anything else is refused, not computed wrongly.
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    rope_type: Literal["default"] = "default"
    mrope_interleaved: Literal[True] = True

    @model_validator(mode="before")
    @classmethod
    def _flatten_rope(cls, data: Any) -> Any:
        """transformers 5 writes rope_parameters; the published checkpoints rope_theta beside rope_scaling."""
        if not isinstance(data, dict):
            return data
        rope = _object(data, "rope_parameters") or _object(data, "rope_scaling")
        rope = {"rope_type": rope["type"], **rope} if "type" in rope else rope
        names = ("rope_theta", "rope_type", "mrope_section", "mrope_interleaved")
        return {**data, **{name: rope[name] for name in names if name in rope}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f"mrope_section {self.mrope_section} does not add up to half of head_dim {self.head_dim}"
            )
        return self


class VisionConfig(_Section):
    """The vision tower."""

    depth: Layers
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_heads: PositiveInt
    patch_size: PositiveInt = 16
    temporal_patch_size: PositiveInt = 2
    spatial_merge_size: PositiveInt = 2
    in_channels: Literal[3] = 3
    out_hidden_size: PositiveInt
    num_position_embeddings: PositiveInt = 2304
    deepstack_visual_indexes: tuple[int, ...]
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    rope_theta: PositiveFloat = 10000.0

    @model_validator(mode="before")
    @classmethod
    def _flatten_rope(cls, data: Any) -> Any:
        """transformers 5 writes rope_parameters; the published checkpoints say nothing of the base."""
        if not isinstance(data, dict):
            return data
        rope = _object(data, "rope_parameters")
        return {**data, "rope_theta": rope["rope_theta"]} if "rope_theta" in rope else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}"
            )
        if isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            raise ValueError(f"num_position_embeddings {self.num_position_embeddings} is not a square")
        if any(not 0 <= index < self.depth for index in self.deepstack_visual_indexes):
            raise ValueError(
                f"deepstack_visual_indexes {self.deepstack_visual_indexes} go beyond depth {self.depth}"
            )
        return self


class ModelConfig(_Section):
    """A Qwen3-VL model's shape and token ids."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...]
    tie_word_embeddings: bool = False

    @classmethod
    def load(cls, directory: Path) -> ModelConfig:
        """Read `directory`'s config.json and, if present, generation_config.json.

        Raises UserError when the folder or file is missing or broken, when the architecture is not Qwen3-VL,
        or when a value asks for something that is not implemented.
        """
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"{directory} is not a folder: expected a checkpoint in the Hugging Face layout")
        data = read_json(directory / "config.json")
        found = data.get("architectures") or [data.get("model_type", "none named")]
        architectures = found if isinstance(found, list) else [found]
        if ARCHITECTURE not in architectures and architectures != ["qwen3_vl"]:
            raise UserError(
                f"{directory / 'config.json'} describes {', '.join(map(str, architectures))}: "
                f"expected {ARCHITECTURE}, a dense Qwen3-VL such as 2B, 4B, 8B or 32B"
            )
        text = data.get("text_config")
        eos = _eos_token_ids(directory, data, text if isinstance(text, dict) else {})
        fields = {**data, "eos_token_ids": eos, "text": text, "vision": data.get("vision_config")}
        if "tie_word_embeddings" not in data and isinstance(text, dict):
            fields["tie_word_embeddings"] = text.get("tie_word_embeddings", False)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise UserError(f"{directory / 'config.json'}: {validation_message(error)}") from None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ValueError(
                f"the vision tower's out_hidden_size {self.vision.out_hidden_size} differs from "
                f"the decoder's hidden_size {self.text.hidden_size}"
            )
        if len(self.vision.deepstack_visual_indexes) > self.text.num_hidden_layers:
            raise ValueError("there are more deepstack_visual_indexes than decoder layers")
        return self


def _object(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The object of that name; empty where there is none, ValueError where it is something else."""
    value = data.get(name)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value or {}


def _eos_token_ids(directory: Path, data: dict[str, Any], text: dict[str, Any]) -> Any:
    """generation_config.json decides, as in transformers; config.json's spellings are the fallback."""
    path = directory / "generation_config.json"
    for source in (read_json(path) if path.exists() else {}, data, text):
        if (eos := source.get("eos_token_id")) is not None:
            return eos if isinstance(eos, list) else [eos]
    return []
