"""Random checkpoints of a real shape: read by us and by transformers, the same on every run."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from bench.__main__ import main
from bench.shape import SHAPES, write_shape
from bench.vocabulary import CONTROL, WORDS, byte_level_tokenizer
from engines.artifact import hash_folder
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.processor import Processor
from quantize.calibration import prepare, read_samples

BASE = 1500  # tokens before the special ones
TEXTS = ["What's the colour of the bus? 42 cars\n\n  ü 漢字", "<|im_start|>user\n<think>no</think><|im_end|>"]


def small_shape() -> dict[str, Any]:
    """The 2B shape with fewer and narrower layers and a small vocabulary."""
    shape = copy.deepcopy(SHAPES["qwen3-vl-2b"])
    shape["text_config"] |= {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": BASE + 40,
        "bos_token_id": BASE,
        "eos_token_id": BASE + 2,
    }
    shape["vision_config"] |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "depth": 3,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1, 2],
    }
    return shape


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shape") / "checkpoint"
    write_shape(out, small_shape())
    return out


def test_the_2b_shape_has_its_parameters_and_ids() -> None:
    first = SHAPES["qwen3-vl-2b"]["text_config"]["bos_token_id"]
    ids = {token: first + i for i, token in enumerate((*CONTROL, *WORDS))}
    published = {"<|im_end|>": 151645, "<|image_pad|>": 151655, "<|video_pad|>": 151656, "</think>": 151668}
    assert ids.items() >= published.items()


def test_transformers_loads_every_tensor_and_stays_finite(written: Path) -> None:
    opened = Checkpoint.open(written)
    model, info = Qwen3VLForConditionalGeneration.from_pretrained(
        written, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    name = "model.visual.blocks.1.mlp.linear_fc1.weight"
    assert np.array_equal(model.state_dict()[name].numpy(), opened.tensor(name).astype(np.float32))
    sample = prepare(read_samples(written / "calibration.jsonl"), Processor.load(written))[0]
    with torch.inference_mode():
        hidden = model.model.language_model(torch.from_numpy(sample.input_ids[None])).last_hidden_state
    assert 0.3 < float(hidden.std()) < 3


def test_shards_are_of_about_equal_size(written: Path) -> None:
    sizes = [path.stat().st_size for path in Checkpoint.open(written).shards]
    assert len(sizes) == 2
    assert max(sizes) < 2 * min(sizes)


def test_no_two_layers_are_equal(written: Path) -> None:
    opened = Checkpoint.open(written)
    layers = [opened.tensor(f"model.language_model.layers.{i}.mlp.up_proj.weight") for i in range(3)]
    correlations = np.corrcoef([layer.astype(np.float32).ravel() for layer in layers])
    assert np.abs(correlations - np.eye(3)).max() < 0.1


@pytest.mark.parametrize("text", TEXTS)
def test_tokenizer_is_what_transformers_reads(written: Path, text: str) -> None:
    theirs = AutoTokenizer.from_pretrained(written)
    ours = Processor.load(written).tokenizer
    ids = ours.encode(text, add_special_tokens=False).ids
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs.decode(ids) == text


def test_vocabulary_has_the_size_asked_for() -> None:
    tokenizer, merges = byte_level_tokenizer(BASE)
    assert sorted(tokenizer.get_vocab(False).values()) == list(range(BASE))
    assert len(set(merges)) == BASE - 256
    assert tokenizer.token_to_id(CONTROL[0]) == BASE


@pytest.mark.parametrize("size", [255, 10**6])
def test_impossible_vocabulary_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"{size} tokens"):
        byte_level_tokenizer(size)


def test_calibration_samples_have_one_image_and_512_tokens(written: Path) -> None:
    prompts = prepare(read_samples(written / "calibration.jsonl"), Processor.load(written))
    assert {(len(prompt.input_ids), len(prompt.media)) for prompt in prompts} == {(512, 1)}
    assert {media.grid for prompt in prompts for media in prompt.media} == {(1, 28, 28)}
    assert len({prompt.input_ids.tobytes() for prompt in prompts}) == len(prompts) == 32


def test_the_seed_decides_every_byte(written: Path, tmp_path: Path) -> None:
    write_shape(tmp_path / "same", small_shape())
    write_shape(tmp_path / "other", small_shape(), seed=1)
    same, other = hash_folder(tmp_path / "same"), hash_folder(tmp_path / "other")
    assert same == hash_folder(written)
    changed = {name for name in same if same[name] != other[name]}
    assert changed == {"calibration.jsonl", *(name for name in same if name.endswith(".safetensors"))}


def test_index_counts_the_bytes(written: Path) -> None:
    index = json.loads((written / "model.safetensors.index.json").read_text())
    opened = Checkpoint.open(written)
    assert index["metadata"]["total_size"] == sum(opened.tensor(name).nbytes for name in opened.names())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["qwen9", "-o", "new"], "no shape 'qwen9'"), (["qwen3-vl-2b", "-o", "."], "already exists")],
)
def test_bad_requests_are_refused(
    arguments: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shape", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error:")
    assert told in line
