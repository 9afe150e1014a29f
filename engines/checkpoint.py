"""A Qwen3-VL checkpoint folder in the Hugging Face layout: one or many safetensors files, read by mmap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.config import ModelConfig, read_json
from engines.errors import UserError
from engines.int4 import Int4
from engines.int8 import Int8
from engines.quantized import Quantization
from engines.safetensors import read_safetensors
from engines.tokenizer import load_tokenizer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
EMBEDDING, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
# What a folder carries besides weights; a built artifact takes along those that exist.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened and checked checkpoint. Tensors are read-only views of the files; nothing is loaded ahead."""

    path: Path
    config: ModelConfig
    quantization: Quantization | None
    shards: tuple[Path, ...]
    _tensors: dict[str, NDArray[Any]]

    @classmethod
    def open(cls, directory: Path) -> Checkpoint:
        """Open `directory`; check architecture, shards, every tensor's presence and shape, and tokenizer.

        Raises UserError naming the first thing that is wrong.
        """
        directory = Path(directory)
        config = ModelConfig.load(directory)
        quantization_config = read_json(directory / "config.json").get("quantization_config")
        quantization = Quantization.parse(quantization_config) if quantization_config else None
        shards, tensors = _read_shards(directory)
        checkpoint = cls(directory, config, quantization, shards, tensors)
        checkpoint._check_tensors()
        load_tokenizer(directory, config)
        return checkpoint

    def names(self) -> list[str]:
        """Names of the stored tensors, sorted."""
        return sorted(self._tensors)

    def tensor(self, name: str) -> NDArray[Any]:
        """One stored tensor as a read-only view; its type is the file's (bfloat16 is ml_dtypes')."""
        if name not in self._tensors:
            raise UserError(f"{self.path} has no tensor {name}")
        return self._tensors[name]

    def weight(self, prefix: str) -> NDArray[Any] | Int4 | Int8:
        """The weight of the layer `prefix` (a name without `.weight`): an array, or integers if stored so."""
        if self.quantization and self.quantization.holds(self._tensors, prefix):
            return self.quantization.read(self._tensors, prefix)
        return self.tensor(f"{prefix}.weight")

    def files(self) -> list[Path]:
        """The files the checkpoint consists of: side files, index and weights."""
        names = (*SIDE_FILES, INDEX)
        return [path for name in names if (path := self.path / name).is_file()] + list(self.shards)

    def _check_tensors(self) -> None:
        problems = []
        for name, shape in expected_tensors(self.config):
            prefix = name.removesuffix(".weight")
            if name in self._tensors:
                if (found := self._tensors[name].shape) != shape:
                    problems.append(f"{name} has shape {found}, config.json asks for {shape}")
            elif self.quantization and len(shape) == 2 and self.quantization.holds(self._tensors, prefix):
                if (found := self.quantization.shape(self._tensors, prefix)) != shape:
                    problems.append(
                        f"{prefix} is a quantised weight of shape {found}, config.json asks for {shape}"
                    )
            else:
                problems.append(f"{name} is missing")
        if self.config.tie_word_embeddings and not self._head_is_embedding():
            problems.append("lm_head.weight differs from the embedding, config.json sets tie_word_embeddings")
        if problems:
            more = f" (and {len(problems) - 1} more such tensors)" if len(problems) > 1 else ""
            raise UserError(f"{self.path}: {problems[0]}{more}")

    def _head_is_embedding(self) -> bool:
        """Whether a tied head, where the file stores it all the same, holds the embedding's very bytes."""
        if HEAD not in self._tensors or EMBEDDING not in self._tensors:
            return True
        return np.array_equal(self._tensors[HEAD].view(np.uint8), self._tensors[EMBEDDING].view(np.uint8))


def _read_shards(directory: Path) -> tuple[tuple[Path, ...], dict[str, NDArray[Any]]]:
    if (directory / SINGLE).exists():
        return (directory / SINGLE,), read_safetensors(directory / SINGLE)
    if not (directory / INDEX).exists():
        raise UserError(
            f"{directory} has neither {SINGLE} nor {INDEX}: expected the weights in safetensors form"
        )
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{directory / INDEX} has no weight_map from tensor names to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{directory / INDEX} names {name!r}: expected *.safetensors files of the same folder"
            )
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise UserError(
            f"{directory / missing[0]} is missing ({len(missing)} of {len(names)} shards are): fetch it again"
        )
    shards = tuple(directory / name for name in names)
    tensors: dict[str, NDArray[Any]] = {}
    for shard in shards:
        tensors.update(read_safetensors(shard))
    return shards, tensors


def expected_tensors(config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor an unquantized checkpoint of this configuration stores."""
    text, vision = config.text, config.vision
    yield EMBEDDING, (text.vocab_size, text.hidden_size)
    if not config.tie_word_embeddings:
        yield HEAD, (text.vocab_size, text.hidden_size)
    yield "model.language_model.norm.weight", (text.hidden_size,)
    for layer in range(text.num_hidden_layers):
        yield from _decoder_layer(f"model.language_model.layers.{layer}", config)
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    yield "model.visual.patch_embed.proj.weight", (vision.hidden_size, *patch)
    yield "model.visual.patch_embed.proj.bias", (vision.hidden_size,)
    yield "model.visual.pos_embed.weight", (vision.num_position_embeddings, vision.hidden_size)
    for block in range(vision.depth):
        yield from _vision_block(f"model.visual.blocks.{block}", config)
    merged = vision.hidden_size * vision.spatial_merge_size**2
    # The last merger normalises before it merges, those for deepstack after.
    mergers = {"merger": vision.hidden_size}
    mergers |= {f"deepstack_merger_list.{i}": merged for i in range(len(vision.deepstack_visual_indexes))}
    for name, norm_size in mergers.items():
        prefix = f"model.visual.{name}"
        yield f"{prefix}.norm.weight", (norm_size,)
        yield f"{prefix}.norm.bias", (norm_size,)
        yield from _biased(f"{prefix}.linear_fc1", merged, merged)
        yield from _biased(f"{prefix}.linear_fc2", vision.out_hidden_size, merged)


def _decoder_layer(prefix: str, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    text = config.text
    queries, keys = text.num_attention_heads * text.head_dim, text.num_key_value_heads * text.head_dim
    yield f"{prefix}.input_layernorm.weight", (text.hidden_size,)
    yield f"{prefix}.self_attn.q_proj.weight", (queries, text.hidden_size)
    yield f"{prefix}.self_attn.k_proj.weight", (keys, text.hidden_size)
    yield f"{prefix}.self_attn.v_proj.weight", (keys, text.hidden_size)
    yield f"{prefix}.self_attn.q_norm.weight", (text.head_dim,)
    yield f"{prefix}.self_attn.k_norm.weight", (text.head_dim,)
    yield f"{prefix}.self_attn.o_proj.weight", (text.hidden_size, queries)
    yield f"{prefix}.post_attention_layernorm.weight", (text.hidden_size,)
    yield f"{prefix}.mlp.gate_proj.weight", (text.intermediate_size, text.hidden_size)
    yield f"{prefix}.mlp.up_proj.weight", (text.intermediate_size, text.hidden_size)
    yield f"{prefix}.mlp.down_proj.weight", (text.hidden_size, text.intermediate_size)


def _vision_block(prefix: str, config: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    vision = config.vision
    for norm in ("norm1", "norm2"):
        yield f"{prefix}.{norm}.weight", (vision.hidden_size,)
        yield f"{prefix}.{norm}.bias", (vision.hidden_size,)
    yield from _biased(f"{prefix}.attn.qkv", 3 * vision.hidden_size, vision.hidden_size)
    yield from _biased(f"{prefix}.attn.proj", vision.hidden_size, vision.hidden_size)
    yield from _biased(f"{prefix}.mlp.linear_fc1", vision.intermediate_size, vision.hidden_size)
    yield from _biased(f"{prefix}.mlp.linear_fc2", vision.hidden_size, vision.intermediate_size)


def _biased(prefix: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.weight", (outputs, inputs)
    yield f"{prefix}.bias", (outputs,)
