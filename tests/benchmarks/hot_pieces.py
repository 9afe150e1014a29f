"""Time of each hot piece, one at a time. By `make bench`; the file's name keeps it out of the tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engines.config import ModelConfig
from engines.generate import TextStream
from engines.onnx_files import DECODER, EMBEDDING, VISION
from engines.onnx_runtime import CPU
from engines.onnx_session import OnnxSession
from engines.onnx_vision import VisionTower
from engines.processor import Inputs, Processor
from engines.sampling import Sampling, next_token

Floor = Callable[..., None]
SIDE = 448  # pixels of the image


def image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8))


def question(picture: Image.Image) -> list[dict[str, Any]]:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "What does the sign say?"}]
    return [{"role": "user", "content": content}]


def linear_weights(config: ModelConfig) -> int:
    """Weights that every token of the text model is multiplied with, the head aside."""
    text = config.text
    heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads  # q and o, k and v
    return text.num_hidden_layers * text.hidden_size * (heads * text.head_dim + 3 * text.intermediate_size)


def test_decode_step(
    benchmark: Any, floor: Floor, session: OnnxSession, prompt: Inputs, artifact: Path
) -> None:
    text = session.config.text
    _, cache = session.prefill([prompt], capacity=len(prompt.input_ids) + 64)

    def rewind() -> None:
        cache.rewind(int(cache.lengths[0]) - len(prompt.input_ids))

    data = (artifact / f"{DECODER}.data").stat().st_size
    table = (artifact / EMBEDDING).stat().st_size
    rows = text.num_hidden_layers * text.num_key_value_heads * len(prompt.input_ids)
    # A 16-bit tied head is read from the embeddings; 4-bit weights bring a head of their own.
    head = 0 if data < linear_weights(session.config) else table
    floor(read=data + head + 2 * 4 * rows * text.head_dim)
    benchmark.pedantic(session.decode, args=(np.array([5]), cache), setup=rewind, rounds=20, warmup_rounds=2)


def test_prefill_512(benchmark: Any, floor: Floor, session: OnnxSession, prompt: Inputs) -> None:
    text, size = session.config.text, len(prompt.input_ids)
    attention = 2 * text.num_hidden_layers * text.num_attention_heads * text.head_dim * size**2 / 2
    head = text.hidden_size * text.vocab_size
    floor(operations=2 * (linear_weights(session.config) * size + attention + head))
    benchmark.pedantic(
        session.prefill, args=([prompt],), kwargs={"capacity": size}, rounds=3, warmup_rounds=1
    )


def test_vision(benchmark: Any, floor: Floor, artifact: Path, processor: Processor) -> None:
    inputs, vision = processor(question(image())), processor.config.vision
    (media,) = inputs.media
    tower = VisionTower(artifact / VISION, processor.config, None, CPU)

    def another() -> tuple[tuple[Inputs], dict[str, Any]]:
        pixels = np.random.default_rng().random(media.pixels.shape, np.float32)
        return (replace(inputs, media=(replace(media, pixels=pixels),)),), {}

    size, wide = len(media.pixels), vision.hidden_size
    merged = wide * vision.spatial_merge_size**2
    merger = (1 + len(vision.deepstack_visual_indexes)) * merged * (merged + vision.out_hidden_size)
    layer = size * wide * (4 * wide + 2 * vision.intermediate_size) + 2 * size**2 * wide
    patches = size * media.pixels.shape[1] * wide
    floor(operations=2 * (vision.depth * layer + merger * size / vision.spatial_merge_size**2 + patches))
    found = benchmark.pedantic(tower, setup=another, rounds=3, warmup_rounds=1)
    assert found.remembered == 0  # an image seen before is not computed again


def test_image_preprocessing(benchmark: Any, floor: Floor, processor: Processor) -> None:
    messages = question(image())
    (media,) = benchmark.pedantic(processor, args=(messages,), rounds=10, warmup_rounds=1).media
    floor(read=3 * SIDE**2 + media.pixels.nbytes)


def test_chat_template_and_tokens(benchmark: Any, floor: Floor, processor: Processor) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 100
    inputs = benchmark(processor, [{"role": "user", "content": text}])
    floor(read=len(text) + inputs.input_ids.nbytes)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(1.0), Sampling(0.7, top_p=0.8), Sampling(0.7, top_k=20, top_p=0.8)],
    ids=["greedy", "all", "top-p", "top-k"],
)  # fmt: skip
def test_sampling(benchmark: Any, floor: Floor, processor: Processor, sampling: Sampling) -> None:
    random = np.random.default_rng(0)
    # A few likely tokens over a Gaussian tail, as language models give them.
    logits = random.normal(scale=2, size=processor.config.text.vocab_size).astype(np.float32)
    logits[:50] += np.linspace(20, 5, 50, dtype=np.float32)
    floor(read=logits.nbytes)
    benchmark(next_token, logits, sampling, random)


def test_detokenise_an_answer(benchmark: Any, floor: Floor, processor: Processor) -> None:
    ids = processor.tokenizer.encode("The sign says: mind the gap. " * 10).ids

    def all_tokens() -> str:
        text = TextStream(processor.tokenizer, ["never said"])
        return "".join(text.push(token) for token in ids) + text.flush()

    floor(read=8 * len(ids))
    benchmark(all_tokens)


@pytest.mark.parametrize("package", ["build", "bench", "serve", "engines", "quantize"])
def test_help(benchmark: Any, package: str) -> None:
    """From the command to its help, a process of its own; beside it one that does nothing."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    benchmark.extra_info["floor"] = time.perf_counter() - began
    command = [sys.executable, "-m", package, "--help"]
    benchmark.pedantic(
        subprocess.run, args=(command,), kwargs={"check": True, "capture_output": True}, rounds=5
    )
