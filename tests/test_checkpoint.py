"""Reading checkpoints: the tensors transformers sees, and one clear line for everything that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import Qwen3VLForConditionalGeneration

from engines import packing
from engines.checkpoint import Checkpoint, expected_tensors
from engines.errors import UserError
from engines.int4 import Int4
from engines.safetensors import read_safetensors
from tests.checkpoints import edit_json, write_checkpoint

DOWN = "model.language_model.layers.0.mlp.down_proj"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, micro_checkpoint: Path) -> Path:
    """Untied, in two shards, bfloat16, other sizes than the embedded checkpoint."""
    return write_checkpoint(
        tmp_path_factory.mktemp("checkpoint") / "model",
        micro_checkpoint,
        layers=3, depth=3, deepstack=(0, 2), patch_size=16, tied=False, shards=2, dtype=torch.bfloat16,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, pristine: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


@pytest.fixture
def single(tmp_path: Path, micro_checkpoint: Path) -> Path:
    """A single-file fp32 checkpoint."""
    return write_checkpoint(tmp_path / "model", micro_checkpoint, layers=1)


def test_tensors_equal_the_library_s(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    seen = set()
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                ours = checkpoint.tensor(name)
                assert ours.dtype == ml_dtypes.bfloat16
                np.testing.assert_array_equal(ours.astype(np.float32), file.get_tensor(name).float().numpy())
                seen.add(name)
    assert seen == set(checkpoint.names())


def test_tensors_are_views_of_the_file(micro_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(micro_checkpoint)
    for name in checkpoint.names():
        tensor = checkpoint.tensor(name)
        assert not tensor.flags.owndata
        assert not tensor.flags.writeable
        assert isinstance(tensor, np.memmap)


@pytest.mark.parametrize("tied", [True, False])
def test_expected_tensors_are_the_model_s(tmp_path: Path, micro_checkpoint: Path, tied: bool) -> None:
    """Names and shapes against the parameters transformers' class makes for the same config.json."""
    folder = write_checkpoint(
        tmp_path / "model", micro_checkpoint,
        layers=2, depth=3, deepstack=(0, 2), heads=6, kv_heads=3, head_dim=64, vision_hidden_size=96,
        vision_intermediate_size=200, intermediate_size=144, patch_size=12, position_embeddings=49, tied=tied,
    )  # fmt: skip
    model, info = Qwen3VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    reference = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if tied:
        del reference["lm_head.weight"]
    assert dict(expected_tensors(Checkpoint.open(folder).config)) == reference


def test_files(folder: Path) -> None:
    files = Checkpoint.open(folder).files()
    names = [file.name for file in files]
    assert {"config.json", "tokenizer.json", "model.safetensors.index.json"} < set(names)
    assert names[-2:] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert all(file.is_file() for file in files)


def remove_tensor(folder: Path, *names: str) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if name not in names}, path)


def truncate(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def shrink_index(folder: Path) -> None:
    edit_json(folder / "model.safetensors.index.json", weight_map=None)


def name_a_shard(folder: Path, name: str) -> None:
    edit_json(folder / "model.safetensors.index.json", weight_map={"x": name})


SHARD = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / SHARD).unlink(), rf"{SHARD} is missing \(1 of 2 shards are\)"),
        (
            lambda f: truncate(f / SHARD, 100_000),
            rf"{SHARD} is truncated: it holds \d+ bytes .* promises \d+",
        ),
        (lambda f: truncate(f / SHARD, 100), rf"{SHARD} is truncated or no safetensors file: 100 bytes"),
        (lambda f: truncate(f / SHARD, 0), rf"{SHARD} cannot be read"),
        (lambda f: (f / SHARD).write_bytes(b"\x04" + b"\0" * 7 + b"hugo"), rf"{SHARD} has a malformed"),
        (
            lambda f: (f / SHARD).write_bytes(b"version https://git-lfs"),
            rf"{SHARD} is truncated or no safetens",
        ),
        (shrink_index, "has no weight_map"),
        *(
            (
                partial(name_a_shard, name=name),
                r"names '.*': expected \*.safetensors files of the same folder",
            )
            for name in ("../secret.safetensors", "/etc/passwd", "pytorch_model.bin", "..")
        ),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "has neither model.safetensors nor"),
        (
            lambda f: edit_json(f / "config.json", text_config__num_hidden_layers=4),
            r"layers.3\..* is missing",
        ),
        (
            lambda f: edit_json(f / "config.json", text_config__intermediate_size=99),
            r"\(and 8 more such tensors",
        ),
        (
            lambda f: edit_json(f / "config.json", text_config__vocab_size=600),
            r"embed_tokens.weight has shape",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        Checkpoint.open(folder)
    assert "\n" not in str(caught.value)


TENSOR = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": TENSOR, "b": TENSOR}, r"a tensor from 0 to 8, expected one from 8 on"),
        ({"a": TENSOR, "b": TENSOR | {"data_offsets": [4, 12]}}, r"from 4 to 12, expected one from 8 on"),
        ({"a": TENSOR, "b": TENSOR | {"data_offsets": [10, 18]}}, r"from 10 to 18, expected one from 8 on"),
        ({"a": TENSOR | {"data_offsets": [-8, 0]}}, r"from -8 to 0, expected one from 0 on"),
        ({"a": TENSOR | {"data_offsets": [0, 1 << 70]}}, r"truncated: it holds 8 bytes .* promises 1180591"),
        ({"a": TENSOR | {"data_offsets": [0.0, 8]}}, r"from 0.0 to 8"),
        ({"a": TENSOR | {"shape": [-1, 2]}}, r"shape \[-1, 2\]"),
        ({"a": TENSOR | {"shape": [1 << 40, 1 << 40]}}, r"malformed safetensors header"),
        ({"a": TENSOR | {"shape": [2, 2], "data_offsets": [0, 7]}}, r"has bytes of no tensor"),
        ({}, r"has bytes of no tensor: it holds 8 bytes of tensors, its header promises 0"),
        ('{"a": 1, "a": 2}', "a name stands there twice"),
        ("[" * 100_000, "RecursionError"),
        ("[]", "malformed safetensors header"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(UserError, match=message) as caught:
        read_safetensors(path)
    assert "\n" not in str(caught.value)


def test_missing_tensors_are_counted(single: Path) -> None:
    remove_tensor(single, f"{DOWN}.weight")
    with pytest.raises(UserError, match=rf"{DOWN}.weight is missing$"):
        Checkpoint.open(single)
    remove_tensor(single, "model.visual.pos_embed.weight", "model.language_model.norm.weight")
    with pytest.raises(UserError, match=r"norm.weight is missing \(and 2 more such tensors\)"):
        Checkpoint.open(single)


def test_untied_head_must_be_there(single: Path) -> None:
    edit_json(single / "config.json", tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"lm_head.weight is missing"):
        Checkpoint.open(single)


def test_tied_head_may_be_stored_but_not_differ(single: Path) -> None:
    """transformers ties the two in the first case and, with a warning, not in the second."""
    path = single / "model.safetensors"
    tensors = load_file(path)
    head = tensors["model.language_model.embed_tokens.weight"].copy()
    save_file({**tensors, "lm_head.weight": head}, path)
    Checkpoint.open(single)
    head[3, 3] += 1
    save_file({**tensors, "lm_head.weight": head}, path)
    with pytest.raises(UserError, match="differs from the embedding"):
        Checkpoint.open(single)


def test_unknown_tensor(single: Path) -> None:
    with pytest.raises(UserError, match=r"has no tensor model\.nonsense\.weight"):
        Checkpoint.open(single).weight("model.nonsense")


def test_tokenizer_with_more_ids_than_embedding_rows(single: Path) -> None:
    tokenizer = Tokenizer.from_file(str(single / "tokenizer.json"))
    rows = Checkpoint.open(single).config.text.vocab_size
    tokenizer.add_tokens([f"<extra {i}>" for i in range(rows + 1 - tokenizer.get_vocab_size())])
    tokenizer.save(str(single / "tokenizer.json"))
    with pytest.raises(UserError, match=rf"token ids up to {rows}, the embedding has {rows} rows"):
        Checkpoint.open(single)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ],
)
def test_vision_tokens_must_be_the_tokenizer_s(single: Path, name: str, token: str) -> None:
    right = json.loads((single / "config.json").read_text())[name]
    edit_json(single / "config.json", **{name: 3})
    with pytest.raises(UserError) as caught:
        Checkpoint.open(single)
    assert f"gives {token} the id {right}, config.json says 3" in str(caught.value)


CONFIGS: dict[str, dict[str, Any]] = {
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32},
                "input_activations": None,
            }
        },
        "ignore": ["lm_head"],
    },
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
}  # fmt: skip
PACK = {
    "compressed-tensors": packing.to_compressed_tensors,
    "gptq": packing.to_autogptq,
    "awq": packing.to_awq,
}


def quantize(folder: Path, method: str) -> dict[str, Int4]:
    """Replace every decoder linear by random 4-bit codes in one of the published layouts."""
    rng = np.random.default_rng(0)
    path = folder / "model.safetensors"
    tensors, weights = load_file(path), {}
    for name in [n for n in tensors if "language_model.layers" in n and "proj" in n]:
        prefix = name.removesuffix(".weight")
        rows, columns = tensors.pop(name).shape
        codes = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
        scales = rng.random((rows, columns // 32)).astype(np.float16)
        weights[prefix] = Int4(codes, scales, 32)
        tensors |= {f"{prefix}.{part}": tensor for part, tensor in PACK[method](weights[prefix]).items()}
    save_file(tensors, path)
    edit_json(folder / "config.json", quantization_config=CONFIGS[method])
    return weights


@pytest.mark.parametrize("method", CONFIGS)
def test_quantized_linears_are_read(single: Path, method: str) -> None:
    weights = quantize(single, method)
    checkpoint = Checkpoint.open(single)
    assert len(weights) == 7
    for prefix, expected in weights.items():
        found = checkpoint.weight(prefix)
        assert isinstance(found, Int4)
        np.testing.assert_array_equal(found.codes, expected.codes)
        np.testing.assert_array_equal(found.scales, expected.scales)
        assert found.group_size == 32
    assert isinstance(checkpoint.weight("model.visual.merger.linear_fc1"), np.ndarray)


@pytest.mark.parametrize("method", CONFIGS)
def test_quantized_shape_is_checked(single: Path, method: str) -> None:
    quantize(single, method)
    path = single / "model.safetensors"
    tensors = load_file(path)
    packed = "weight_packed" if method == "compressed-tensors" else "qweight"
    tensors[f"{DOWN}.{packed}"] = np.ascontiguousarray(tensors[f"{DOWN}.{packed}"][:-1])
    save_file(tensors, path)
    with pytest.raises(
        UserError, match=rf"{DOWN} is a quantised weight of shape \(\d+, \d+\), config.json asks for"
    ):
        Checkpoint.open(single)


@pytest.mark.parametrize("method", CONFIGS)
def test_quantized_part_missing(single: Path, method: str) -> None:
    quantize(single, method)
    scale = "weight_scale" if method == "compressed-tensors" else "scales"
    remove_tensor(single, f"{DOWN}.{scale}")
    with pytest.raises(UserError, match=rf"{DOWN}.{scale} is missing"):
        Checkpoint.open(single)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("gptq", {"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes', expected one of"),
        ("gptq", {"bits": 3}, "3 bits, only 4"),
        ("awq", {"bits": 8}, "8 bits, only 4"),
        ("gptq", {"sym": False}, "sym=False"),
        ("gptq", {"checkpoint_format": "marlin"}, "checkpoint_format='marlin'"),
        ("gptq", {"group_size": 64}, "groups of 32, quantization_config says 64"),
        ("gptq", {"group_size": "all"}, "group_size 'all', expected"),
        ("awq", {"version": "gemv"}, "AWQ version 'gemv'"),
        ("compressed-tensors", {"format": "marlin-24"}, "format 'marlin-24', expected 'pack-quantized'"),
        ("compressed-tensors", {"config_groups__group_0__weights__num_bits": 8}, "weights of 8 bits"),
        ("compressed-tensors", {"config_groups__group_0__weights__symmetric": False}, "symmetric=False"),
        ("compressed-tensors", {"config_groups__group_0__input_activations": {"num_bits": 8}}, "activations"),
        ("compressed-tensors", {"config_groups": {}}, "expected an entry"),
    ],
)
def test_refuses_other_quantization(single: Path, method: str, changes: dict[str, Any], message: str) -> None:
    quantize(single, method)
    edit_json(
        single / "config.json", **{f"quantization_config__{key}": value for key, value in changes.items()}
    )
    with pytest.raises(UserError, match=message):
        Checkpoint.open(single).weight(DOWN)
