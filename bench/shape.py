"""Random checkpoints of a real model's exact shape, for speed, memory and the tools around a model.

Their answers mean nothing. Weights are drawn so that activations keep their size through every layer, and
written as they are drawn.
"""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any
from zlib import crc32

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.tasks import Item, write_items
from bench.vocabulary import CONTROL, WORDS, byte_level_tokenizer
from engines.artifact import write_json
from engines.checkpoint import EMBEDDING, INDEX, expected_tensors
from engines.config import ARCHITECTURE, ModelConfig
from engines.errors import UserError
from engines.processor import Processor
from engines.safetensors import stream_safetensors

BLOCK = 1 << 22  # weights drawn at once
TEMPLATE = Path(__file__).parent / "micro" / "checkpoint" / "chat_template.jinja"
SAMPLES, SAMPLE_TOKENS, IMAGE_SIDE = 32, 512, 448
Progress = Callable[[int, int], None]

# config.json of the published checkpoints, but for token ids, which follow from the vocabulary.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-vl-2b": {
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
            "rms_norm_eps": 1e-6,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
                "rope_type": "default",
            },
            "rope_theta": 5000000,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": 151936,
        },
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
        "tie_word_embeddings": True,
    }
}

LARGE_VISION = {
    "deepstack_visual_indexes": [8, 16, 24],
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
}


def _sibling(text: dict[str, Any], vision: dict[str, Any], tied: bool) -> dict[str, Any]:
    """Another size of the family: what its config.json has otherwise than the 2B's."""
    base = SHAPES["qwen3-vl-2b"]
    sizes = {"num_hidden_layers": 36, "num_attention_heads": 32, "tie_word_embeddings": tied} | text
    return {
        "text_config": base["text_config"] | sizes,
        "vision_config": base["vision_config"] | {"out_hidden_size": text["hidden_size"]} | vision,
        "tie_word_embeddings": tied,
    }


SHAPES |= {
    "qwen3-vl-4b": _sibling({"hidden_size": 2560, "intermediate_size": 9728}, {}, True),
    "qwen3-vl-8b": _sibling({"hidden_size": 4096, "intermediate_size": 12288}, LARGE_VISION, False),
    "qwen3-vl-32b": _sibling(
        {
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_hidden_layers": 64,
            "num_attention_heads": 64,
        },
        LARGE_VISION,
        False,
    ),
}


def write_shape(
    out: Path, shape: dict[str, Any], *, seed: int = 0, shards: int = 2, progress: Progress | None = None
) -> dict[str, int]:
    """Writes a bfloat16 checkpoint of `shape` (as in SHAPES) with calibration.jsonl to the new folder `out`.

    Returns {parameters, bytes}. Equal seeds give equal bytes. Raises UserError when `out` exists.
    """
    if out.exists():
        raise UserError(f"{out} already exists: choose another output, or remove it first")
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_side_files(partial, shape)
    tensors = dict(expected_tensors(ModelConfig.load(partial)))
    bytes_written = _write_weights(partial, tensors, seed, shards, progress or (lambda done, total: None))
    processor = Processor.load(partial)
    rng = random.Random(f"calibration:{seed}")
    write_items(partial / "calibration.jsonl", (_sample(processor, rng) for _ in range(SAMPLES)))
    partial.rename(out)
    return {"parameters": bytes_written // 2, "bytes": bytes_written}


def _write_weights(
    out: Path, tensors: dict[str, tuple[int, ...]], seed: int, shards: int, progress: Progress
) -> int:
    """Shards of about equal size and their index; returns the bytes of all tensors."""
    total = sum(2 * int(np.prod(tensor)) for tensor in tensors.values())
    parts: list[dict[str, tuple[Any, tuple[int, ...]]]] = [{} for _ in range(shards)]
    placed = 0
    for name, dimensions in tensors.items():
        parts[min(shards - 1, placed * shards // total)][name] = (ml_dtypes.bfloat16, dimensions)
        placed += 2 * int(np.prod(dimensions))
    done = 0

    def blocks(name: str) -> Iterator[NDArray[Any]]:
        nonlocal done
        for block in _draw(name, tensors[name], seed):
            done += block.nbytes
            progress(done, total)
            yield block

    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        stream_safetensors(out / file, part, blocks)
        weight_map |= dict.fromkeys(part, file)
    write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return total


def _draw(name: str, shape: tuple[int, ...], seed: int) -> Iterator[NDArray[Any]]:
    """A tensor in flat blocks: norms about 1, biases about 0, matrices that keep their input's size."""
    count, inputs = int(np.prod(shape)), int(np.prod(shape[1:]))
    centre = 1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0
    if len(shape) == 1:
        spread = 0.1
    elif name.endswith("pos_embed.weight"):
        spread = 0.5
    else:  # twice for the tied head, so that some tokens are likelier than others
        spread = (2 if name == EMBEDDING else 1) / inputs**0.5
    for start in range(0, count, BLOCK):
        rng = np.random.Generator(np.random.SFC64([seed, crc32(name.encode()), start]))
        block = rng.standard_normal(min(BLOCK, count - start), np.float32)
        yield (block * np.float32(spread) + np.float32(centre)).astype(ml_dtypes.bfloat16)


def _write_side_files(out: Path, shape: dict[str, Any]) -> None:
    """Everything of the folder but its weights, as the published checkpoints have it."""
    first = shape["text_config"]["bos_token_id"]
    ids = {token: first + i for i, token in enumerate((*CONTROL, *WORDS))}
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    write_json(
        out / "config.json",
        {
            "architectures": [ARCHITECTURE],
            "dtype": "bfloat16",
            "image_token_id": ids["<|image_pad|>"],
            "model_type": "qwen3_vl",
            "video_token_id": ids["<|video_pad|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            **shape,
        },
    )
    sampling = {"do_sample": True, "top_k": 20, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.0}
    write_json(
        out / "generation_config.json",
        {"bos_token_id": pad, "eos_token_id": [end, pad], "pad_token_id": pad, **sampling},
    )
    tokenizer, merges = byte_level_tokenizer(first)
    tokenizer.save(str(out / "tokenizer.json"))
    vocabulary = dict(sorted(tokenizer.get_vocab(False).items(), key=lambda entry: entry[1]))
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (out / "merges.txt").write_text("".join(f"{a} {b}\n" for a, b in merges))
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    write_json(
        out / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(i): {"content": token, **flags, "special": token in CONTROL} for token, i in ids.items()
            },
            "additional_special_tokens": list(CONTROL[1:]),
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": shape["text_config"]["max_position_embeddings"],
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    shutil.copyfile(TEMPLATE, out / TEMPLATE.name)
    vision = shape["vision_config"]
    pixels = {
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    sizes = {"longest_edge": 16777216, "shortest_edge": 65536}
    write_json(
        out / "preprocessor_config.json",
        {"size": sizes, **pixels, "image_processor_type": "Qwen2VLImageProcessorFast"},
    )
    sizes = {"longest_edge": 25165824, "shortest_edge": 4096}
    write_json(
        out / "video_preprocessor_config.json",
        {"size": sizes, **pixels, "video_processor_type": "Qwen3VLVideoProcessor"},
    )


def _sample(processor: Processor, rng: random.Random) -> Item:
    """A picture of coloured squares, a question and a long answer: exactly SAMPLE_TOKENS tokens in all."""
    squares = np.frombuffer(rng.randbytes(28 * 28 * 3), np.uint8).reshape(28, 28, 3)
    picture = Image.fromarray(squares).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    text = {"type": "text", "text": "".join(_word(rng) for _ in range(64))}
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]},
    ]
    room = SAMPLE_TOKENS - len(processor(messages).input_ids)
    ids = processor.tokenizer.encode("".join(_word(rng) for _ in range(room)), add_special_tokens=False).ids
    answer = processor.decode(ids[: room // 2])
    # Cut text may encode otherwise; a digit is always a token of its own.
    used = len(processor.tokenizer.encode(answer, add_special_tokens=False).ids)
    return Item.make("shape", messages, answer + "".join(rng.choices("0123456789", k=room - used)), 0.0)


def _word(rng: random.Random) -> str:
    return " " + "".join(rng.choices(ascii_lowercase, k=rng.randint(2, 9)))
