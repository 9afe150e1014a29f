"""Random Qwen3-VL checkpoints for tests, made by transformers' own model class."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

# The other sizes of the family in small, each with what it has otherwise than the 2B. 8B and 32B share a
# vision tower of 27 layers, of heads of 72 channels and an inner width that few powers of two divide.
LARGE_VISION: dict[str, Any] = {"depth": 27, "deepstack": (8, 16, 24), "position_embeddings": 49}
FAMILY: dict[str, dict[str, Any]] = {
    "4B": {  # heads wider than the hidden size, four to a key; a tied head
        "hidden_size": 160,
        "intermediate_size": 608,
        "heads": 8,
        "kv_heads": 2,
        "depth": 24,
        "deepstack": (5, 11, 17),
        "vision_intermediate_size": 256,
    },
    "8B": {  # an untied head
        "hidden_size": 128,
        "intermediate_size": 384,
        "kv_heads": 1,
        "vision_hidden_size": 144,
        "vision_heads": 2,
        "vision_intermediate_size": 538,
        "tied": False,
        **LARGE_VISION,
    },
    "32B": {  # eight heads to a key
        "hidden_size": 160,
        "intermediate_size": 800,
        "heads": 16,
        "head_dim": 16,
        "vision_hidden_size": 72,
        "vision_heads": 1,
        "vision_intermediate_size": 269,
        "patch_size": 14,
        "tied": False,
        **LARGE_VISION,
    },
}


def write_checkpoint(
    directory: Path,
    side_files: Path,
    *,
    layers: int = 2,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 32,
    depth: int = 2,
    vision_hidden_size: int = 64,
    vision_intermediate_size: int = 128,
    vision_heads: int = 4,
    patch_size: int = 8,
    position_embeddings: int = 64,
    deepstack: tuple[int, ...] = (0,),
    tied: bool = True,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a checkpoint to `directory` (created) and return it.

    Tokenizer, chat template and token ids are those of the checkpoint `side_files`. Norms are not trivial and
    logits are spread, so that a wrong graph shows.
    """
    base = json.loads((side_files / "config.json").read_text())
    side = head_dim // 2 * 5 // 16
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": base["text_config"]["vocab_size"],
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "max_position_embeddings": 4096,
            "eos_token_id": base["text_config"].get("eos_token_id"),
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [head_dim // 2 - 2 * side, side, side],
                "mrope_interleaved": True,
            },
            "tie_word_embeddings": tied,
        },
        vision_config={
            "depth": depth,
            "hidden_size": vision_hidden_size,
            "intermediate_size": vision_intermediate_size,
            "num_heads": vision_heads,
            "patch_size": patch_size,
            "out_hidden_size": hidden_size,
            "num_position_embeddings": position_embeddings,
            "deepstack_visual_indexes": list(deepstack),
        },
        tie_word_embeddings=tied,
        architectures=["Qwen3VLForConditionalGeneration"],
        dtype=dtype,
        **{name: base[name] for name in base if name.endswith("_token_id")},
    )
    directory.mkdir(parents=True)
    config.save_pretrained(directory)
    _copy_side_files(side_files, directory, patch_size)
    _save(_random_model(config, seed), directory, tied, shards, dtype)
    return directory


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file, or remove those given as None; `a__b` stands for key b of object a."""
    data = json.loads(path.read_text())
    for name, value in changes.items():
        *parents, key = name.split("__")
        target = data
        for parent in parents:
            target = target[parent]
        if value is None:
            target.pop(key, None)
        else:
            target[key] = value
    path.write_text(json.dumps(data))


def _random_model(config: Qwen3VLConfig, seed: int) -> Qwen3VLForConditionalGeneration:
    model = Qwen3VLForConditionalGeneration._from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(noise * 2 / parameter.shape[1] ** 0.5)
            elif "pos_embed" in name:
                parameter.copy_(noise * 0.5)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    return model


def _copy_side_files(source: Path, directory: Path, patch_size: int) -> None:
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "generation_config.json",
    ):
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)
            if name.endswith("preprocessor_config.json"):
                edit_json(directory / name, patch_size=patch_size)


def _save(
    model: Qwen3VLForConditionalGeneration, directory: Path, tied: bool, shards: int, dtype: torch.dtype
) -> None:
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    if tied:
        tensors.pop("lm_head.weight", None)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = list(tensors)[shard::shards]
        save_file({name: tensors[name] for name in names}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
