"""The forward that trains the micro checkpoint computes what transformers computes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bench.micro.batches import collate, patchify
from bench.micro.samples import Sample
from bench.micro.tasks import FAMILIES, TASKS
from bench.micro.tokenizer import MicroTokens, train_tokenizer

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def tokens() -> MicroTokens:
    return MicroTokens(train_tokenizer())


@pytest.fixture(scope="module")
def model(tokens: MicroTokens):
    from bench.micro.model import new_model

    torch.manual_seed(0)
    return new_model(tokens).eval()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("family", ["atlas", "scene", "images", "video"])
def test_forward_equals_transformers(model, tokens: MicroTokens, family: str, nested: bool) -> None:
    """Logits of every answer token, transformers working out its own positions from the ids and grids."""
    from bench.micro.model import forward

    rng = random.Random(4)
    layout = FAMILIES[family].layout(rng)
    samples = [FAMILIES[family].draw(rng, "train", layout, None) for _ in range(3)]
    batch = collate(samples, tokens, nested)
    with torch.no_grad():
        ours = forward(model, batch)
    theirs = []
    for row, sample in enumerate(samples):
        length = int((batch.ids[row] != tokens.pad).sum())
        with torch.no_grad():
            logits = model(**_inputs(batch.ids[row : row + 1, :length], sample, tokens)).logits[0]
        theirs.append(logits[ours.where[row].nonzero()[:, 0]])
    expected = torch.cat(theirs)
    assert expected.shape == ours.logits.shape
    assert torch.linalg.norm(ours.logits - expected) / torch.linalg.norm(expected) < 1e-5


def _inputs(ids, sample: Sample, tokens: MicroTokens) -> dict:
    kinds = (ids == tokens.image).int() + 2 * (ids == tokens.video).int()
    inputs = {"input_ids": ids, "mm_token_type_ids": kinds}
    for key, grid_key, media in (
        ("pixel_values", "image_grid_thw", [m for m in sample.media if m.fps is None]),
        ("pixel_values_videos", "video_grid_thw", [m for m in sample.media if m.fps is not None]),
    ):
        if media:
            patches = [patchify(m.frames) for m in media]
            sizes = [m.frames.shape[1:3] for m in media]
            grids = [(len(p), h // 8, w // 8) for p, (h, w) in zip(patches, sizes, strict=True)]
            flat = np.concatenate([p.reshape(-1, p.shape[-1]) for p in patches])
            inputs |= {key: torch.from_numpy(flat) / 127.5 - 1, grid_key: torch.tensor(grids)}
    return inputs


def test_patches_equal_transformers(tokens: MicroTokens) -> None:
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    expected, *grid = Qwen3VLVideoProcessor.patchify(
        None, video, patch_size=8, merge_size=2, temporal_patch_size=2
    )
    assert grid == [2, 4, 6]
    assert np.array_equal(patchify(frames).reshape(24 * 2, -1), expected[0].numpy())


@pytest.mark.parametrize("task", TASKS)
def test_prompt_equals_the_processors(task: str, tokens: MicroTokens, micro_checkpoint) -> None:
    """What training shows the model is what the serving processor makes of the item's messages."""
    from bench.micro.tasks import make_item, user_message
    from engines.processor import Processor

    processor = Processor.load(micro_checkpoint)
    trained = MicroTokens(processor.tokenizer)
    rng = random.Random(8)
    family = FAMILIES[TASKS[task].family]
    sample = family.draw(rng, "test", family.layout(rng), task)
    inputs = processor([user_message(sample.media, sample.turns[0][0])])
    batch = collate([sample], trained, nested=True)
    length = len(inputs.input_ids)
    assert batch.ids[0, :length].tolist() == inputs.input_ids.tolist()
    assert batch.positions[:, 0, :length].tolist() == inputs.positions.tolist()
    assert len(inputs.media) == len(batch.media)
    for ours, (pixels, _) in zip(inputs.media, batch.media, strict=True):
        np.testing.assert_allclose(ours.pixels, pixels[0].flatten(0, 1).numpy() / 127.5 - 1, atol=1e-6)
    assert make_item(task, random.Random(8), "test").answer == sample.turns[0][1]
