"""ModelConfig against transformers' reading of the same file, in both spellings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import Qwen3VLConfig

from engines.config import ModelConfig
from engines.errors import UserError
from tests.checkpoints import edit_json

# Qwen/Qwen3-VL-2B-Instruct's config.json as published, in transformers 4's spelling.
PUBLISHED = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "image_token_id": 151655,
    "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
        "rope_theta": 5000000,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": 151936,
    },
    "tie_word_embeddings": True,
    "transformers_version": "4.57.0.dev0",
    "video_token_id": 151656,
    "vision_config": {
        "deepstack_visual_indexes": [5, 11, 17],
        "depth": 24,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1024,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "model_type": "qwen3_vl",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
    "vision_end_token_id": 151653,
    "vision_start_token_id": 151652,
}


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    return tmp_path


@pytest.fixture
def micro(tmp_path: Path, micro_checkpoint: Path) -> Path:
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(micro_checkpoint / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("spelling", ["published", "micro", "resaved"])
def test_agrees_with_transformers(spelling: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue("micro" if spelling == "micro" else "published")
    reference = Qwen3VLConfig.from_pretrained(folder)
    if spelling == "resaved":  # the published model in transformers 5's spelling
        reference.save_pretrained(folder)
        assert "rope_parameters" in json.loads((folder / "config.json").read_text())["text_config"]
    config = ModelConfig.load(folder)
    text, vision = reference.text_config, reference.vision_config
    for name in config.vision.model_dump():
        value = vision.rope_parameters[name] if name == "rope_theta" else getattr(vision, name)
        assert getattr(config.vision, name) == (tuple(value) if isinstance(value, list) else value), name
    rope = {"rope_theta", "rope_type", "mrope_section", "mrope_interleaved"}
    for name in config.text.model_dump():
        value = text.rope_parameters[name] if name in rope else getattr(text, name)
        assert getattr(config.text, name) == (tuple(value) if isinstance(value, list) else value), name
    for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
        assert getattr(config, name) == getattr(reference, name)
    assert config.tie_word_embeddings == reference.tie_word_embeddings


def test_generation_config_decides_the_stop_tokens(published: Path) -> None:
    assert ModelConfig.load(published).eos_token_ids == (151645, 151643)
    (published / "generation_config.json").unlink()
    assert ModelConfig.load(published).eos_token_ids == (151645,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["LlamaForCausalLM"]},
            r"LlamaForCausalLM: expected Qwen3VLForConditionalGeneration",
        ),
        (
            {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"},
            r"describes Qwen3VLMoeForCond.*: expected Qwen3VLForCond.*, a dense Qwen3-VL such as 2B",
        ),
        (
            {"architectures": None, "model_type": "qwen3_vl_moe"},
            r"describes qwen3_vl_moe: expected Qwen3VLFor",
        ),
        ({"architectures": None, "model_type": "llama"}, r"describes llama: expected Qwen3VLFor"),
        ({"architectures": 7}, r"describes 7: expected Qwen3VLFor"),
        ({"vision_config__rope_parameters": 7}, r"vision: rope_parameters is not an object"),
        ({"vision_config__num_position_embeddings": 10**401}, r"is not a square"),
        ({"text_config__head_dim": 10**400}, r"does not add up to half"),
        ({"text_config__num_hidden_layers": 10**9}, r"less than or equal to 1000"),
        ({"text_config__rms_norm_eps": float("inf")}, r"text.rms_norm_eps: .*finite"),
        ({"text_config": None}, r"text: .*"),
        ({"text_config__hidden_size": None}, r"text.hidden_size: Field required"),
        ({"text_config__num_hidden_layers": -1}, r"text.num_hidden_layers: .*greater than 0"),
        ({"text_config__num_key_value_heads": 3}, r"not a multiple of num_key_value_heads 3"),
        ({"text_config__head_dim": 64}, r"does not add up to half of head_dim 64"),
        ({"text_config__rope_scaling__rope_type": "yarn"}, r"text.rope_type: Input should be 'default'"),
        ({"text_config__rope_scaling": {"type": "linear"}}, r"text.rope_type: Input should be 'default'"),
        ({"text_config__rope_scaling__mrope_interleaved": False}, r"text.mrope_interleaved"),
        ({"text_config__rope_scaling": [1]}, r"rope_scaling is not an object"),
        ({"text_config__attention_bias": True}, r"text.attention_bias"),
        ({"text_config__hidden_act": "gelu"}, r"text.hidden_act: Input should be 'silu'"),
        ({"vision_config__hidden_act": "gelu"}, r"vision.hidden_act"),
        ({"vision_config__deepstack_visual_indexes": [24]}, r"go beyond depth 24"),
        ({"vision_config__num_position_embeddings": 2305}, r"2305 is not a square"),
        (
            {"vision_config__out_hidden_size": 1024},
            r"out_hidden_size 1024 differs from the decoder's hidden_size",
        ),
        ({"image_token_id": None}, r"image_token_id: Field required"),
    ],
)
def test_refuses_what_it_cannot_compute(published: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(published / "config.json", **changes)
    with pytest.raises(UserError, match=message) as caught:
        ModelConfig.load(published)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing"),
        ("{", "cannot be read as JSON"),
        ("[]", "expected an object"),
        ("\xff", "cannot be read"),
    ],
)
def test_broken_file(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        ModelConfig.load(tmp_path)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nonexistent is not a folder"):
        ModelConfig.load(tmp_path / "nonexistent")
