"""The whole way from messages to inputs against transformers' Qwen3VLProcessor and its position ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import Qwen3VLConfig, Qwen3VLModel

from engines.errors import UserError
from engines.processor import Inputs, Processor
from tests.checkpoints import edit_json, write_checkpoint
from tests.references import reference_processor

IMAGES = {
    "size": {"shortest_edge": 256, "longest_edge": 16384},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
VIDEOS = {**IMAGES, "size": {"shortest_edge": 1024, "longest_edge": 32768}}
SIZES = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip(frames: int, height: int, width: int) -> list[Image.Image]:
    return [picture(height, width, seed) for seed in range(frames)]


def ask(*content: Any) -> list[dict[str, Any]]:
    """A user's message of texts (str), images and clips (lists of frames at 2 per second)."""
    parts = []
    for part in content:
        if isinstance(part, str):
            parts.append({"type": "text", "text": part})
        elif isinstance(part, list):
            parts.append({"type": "video", "video": part, "fps": 2})
        else:
            parts.append({"type": "image", "image": part})
    return [{"role": "user", "content": parts}]


PROMPTS = {
    "text": ask("Hello, world! 你好 12345 \n\n  spaced  \tout 🙂"),
    "one image": ask(picture(48, 64), "What is this?"),
    "two sizes": ask("First", picture(50, 75), "second", picture(128, 40, seed=1), "?"),
    "neighbours": ask(picture(32, 32), picture(32, 32, seed=1)),
    "video": ask(clip(5, 32, 48), "What happens?"),
    "image and video": ask(clip(4, 60, 44), "then", picture(70, 33), clip(3, 32, 32), "end"),
    "turns": [
        *ask(picture(48, 64), "What?"),
        {"role": "assistant", "content": "A picture."},
        *ask("And", clip(2, 32, 32), "?"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, micro_checkpoint: Path) -> Path:
    """The embedded checkpoint's text side with preprocessor settings of our own."""
    folder = tmp_path_factory.mktemp("processor")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(micro_checkpoint / name, folder / name)
    edit_json(folder / "config.json", vision_config__patch_size=8)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES | SIZES))
    (folder / "video_preprocessor_config.json").write_text(json.dumps(VIDEOS | SIZES))
    return folder


@pytest.fixture(scope="module")
def processor(folder: Path) -> Processor:
    return Processor.load(folder)


@pytest.fixture
def broken(tmp_path: Path, folder: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def reference_inputs(folder: Path, prompts: list[list[dict[str, Any]]], **options: Any) -> dict[str, Any]:
    """A batch through transformers' processor and the model's position ids."""
    reference = reference_processor(folder, IMAGES | SIZES, VIDEOS | SIZES)
    images, videos = [], []
    for part in (part for messages in prompts for m in messages for part in m["content"]):
        if isinstance(part, dict) and part["type"] == "image":
            images.append(part["image"])
        elif isinstance(part, dict) and part["type"] == "video":
            videos.append(np.stack([np.array(frame) for frame in part["video"]]))
    metadata = [
        {"total_num_frames": len(v), "fps": 2.0, "frames_indices": list(range(len(v)))} for v in videos
    ]
    texts = [reference.apply_chat_template(messages, add_generation_prompt=True) for messages in prompts]
    media = {"images": images} if images else {}
    if videos:
        media |= {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}
    inputs = reference(text=texts, return_tensors="pt", **media, **options)
    config = Qwen3VLConfig.from_pretrained(folder)
    model = object.__new__(Qwen3VLModel)  # its position ids depend on the config alone
    model.__dict__["config"] = config
    positions, deltas = model.get_rope_index(
        inputs["input_ids"],
        inputs["mm_token_type_ids"],
        inputs.get("image_grid_thw"),
        inputs.get("video_grid_thw"),
        inputs["attention_mask"],
    )
    return {name: value.numpy() for name, value in inputs.items()} | {
        "positions": positions.numpy(),
        "deltas": deltas.numpy(),
    }


def assert_media(inputs: list[Inputs], expected: dict[str, Any]) -> None:
    for kind, pixels, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        media = [item for prompt in inputs for item in prompt.media if item.kind == kind]
        assert [list(item.grid) for item in media] == expected.get(grid, np.zeros((0, 3))).tolist()
        if media:
            np.testing.assert_array_equal(np.concatenate([item.pixels for item in media]), expected[pixels])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_inputs_equal_the_reference(folder: Path, processor: Processor, prompt: str) -> None:
    expected = reference_inputs(folder, [PROMPTS[prompt]])
    inputs = processor(PROMPTS[prompt])
    assert inputs.input_ids.dtype == inputs.positions.dtype == np.int64
    np.testing.assert_array_equal(inputs.input_ids, expected["input_ids"][0])
    np.testing.assert_array_equal(inputs.positions, expected["positions"][:, 0])
    assert inputs.next_position == len(inputs.input_ids) + expected["deltas"][0, 0]
    assert_media([inputs], expected)


def test_a_padded_batch_equals_the_reference(folder: Path, processor: Processor) -> None:
    expected = reference_inputs(folder, list(PROMPTS.values()), padding=True, padding_side="right")
    inputs = [processor(prompt) for prompt in PROMPTS.values()]
    for row, prompt in enumerate(inputs):
        length = len(prompt.input_ids)
        assert expected["attention_mask"][row].sum() == length
        np.testing.assert_array_equal(prompt.input_ids, expected["input_ids"][row, :length])
        np.testing.assert_array_equal(prompt.positions, expected["positions"][:, row, :length])
        assert prompt.next_position == length + expected["deltas"][row, 0]
    assert_media(inputs, expected)


def test_extend_equals_the_positions_of_the_longer_prompt(processor: Processor) -> None:
    """Text after an image goes on where a prompt with that text in it would."""
    answer = processor.tokenizer.encode("An answer.", add_special_tokens=False).ids
    prompt = processor(PROMPTS["one image"])
    longer = processor([*PROMPTS["one image"], {"role": "assistant", "content": "An answer."}], False)
    extended = prompt.extend(answer)
    length = len(extended.input_ids)
    assert length == len(prompt.input_ids) + len(answer)
    np.testing.assert_array_equal(extended.input_ids, longer.input_ids[:length])
    np.testing.assert_array_equal(extended.positions, longer.positions[:, :length])
    assert extended.next_position == longer.positions[0, length]
    assert extended.media is prompt.media
    assert len(prompt.extend([]).input_ids) == len(prompt.input_ids)


def test_media_keep_their_order(processor: Processor) -> None:
    assert [item.kind for item in processor(PROMPTS["image and video"]).media] == ["video", "image", "video"]


def test_timestamps_are_written(processor: Processor) -> None:
    """Five frames at 2 per second in pairs: the middle of 0 and 0.5, of 1 and 1.5, and 2 with itself."""
    text = processor.decode(processor(PROMPTS["video"]).input_ids, skip_special_tokens=False)
    start, end = "<|vision_start|>", "<|vision_end|>"
    frame = start + "<|video_pad|>" * 6 + end
    assert f"{start}<0.2 seconds>{frame}<1.2 seconds>{frame}<2.0 seconds>{frame}{end}What" in text


def test_decode_equals_the_tokenizer(folder: Path, processor: Processor) -> None:
    tokenizer = reference_processor(folder, {}, {}).tokenizer
    ids = processor(PROMPTS["text"]).input_ids
    assert processor.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)
    assert processor.decode(ids, skip_special_tokens=False) == tokenizer.decode(ids)
    assert "你好" in processor.decode(ids)


def test_random_checkpoint_of_another_patch_size(tmp_path: Path, micro_checkpoint: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", micro_checkpoint, layers=1, depth=1, patch_size=12)
    (image,) = Processor.load(folder)(ask(picture(50, 70))).media
    assert image.pixels.shape == (np.prod(image.grid), 3 * 2 * 12 * 12)


def test_videos_fall_back_to_the_image_settings(broken: Path) -> None:
    """As transformers' from_pretrained does."""
    (broken / "video_preprocessor_config.json").unlink()
    processor = Processor.load(broken)
    assert (processor.videos.min_pixels, processor.videos.max_pixels) == (256, 16384)
    assert processor.videos.patch_size == 8


def test_processor_config_sections_come_first(broken: Path) -> None:
    sections = {"image_processor": {**IMAGES, **SIZES, "size": {"shortest_edge": 64, "longest_edge": 128}}}
    (broken / "processor_config.json").write_text(json.dumps(sections))
    (broken / "preprocessor_config.json").unlink()
    processor = Processor.load(broken)
    assert (processor.images.min_pixels, processor.images.max_pixels) == (64, 128)
    assert (processor.videos.min_pixels, processor.videos.max_pixels) == (1024, 32768)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("preprocessor_config.json", {"patch_size": 16}, r"are \(16, 2, 2\), config.json's \(8, 2, 2\)"),
        ("video_preprocessor_config.json", {"merge_size": 1}, r"are \(8, 2, 1\), config.json's \(8, 2, 2\)"),
        ("preprocessor_config.json", {"do_rescale": False}, r"preprocessor settings: do_rescale"),
        ("config.json", {"image_token_id": 1}, r"gives <\|image_pad\|> the id"),
    ],
)
def test_parts_must_fit_each_other(broken: Path, name: str, changes: dict[str, Any], message: str) -> None:
    edit_json(broken / name, **changes)
    with pytest.raises(UserError, match=message):
        Processor.load(broken)


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "chat_template.jinja"])
def test_missing_files_are_named(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(UserError, match=name):
        Processor.load(broken)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0].content[1].text }}", r"places 0 images and 0 videos, the messages hold 1 and 0"),
        ("<|image_pad|><|image_pad|>", r"places 2 images and 0 videos, the messages hold 1 and 0"),
        ("<|video_pad|>", r"places 0 images and 1 videos, the messages hold 1 and 0"),
    ],
)
def test_template_must_place_all_media(broken: Path, template: str, message: str) -> None:
    (broken / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=message):
        Processor.load(broken)(PROMPTS["one image"])


@pytest.mark.parametrize(
    "text", ["<|image_pad|>", "<|video_pad|> x", "a<|vision_start|><|image_pad|><|vision_end|>"]
)
def test_literal_placeholders_in_text_are_refused(processor: Processor, text: str) -> None:
    for messages in (ask(text), ask(picture(32, 32), text), [{"role": "user", "content": text}]):
        with pytest.raises(UserError, match="holds the literal token"):
            processor(messages)


def test_literal_placeholders_in_tools_or_pieces_are_refused(broken: Path) -> None:
    """What the texts do not show, the prompt does."""
    shutil.copyfile(
        Path(__file__).parent / "data/qwen3_vl_chat_template.jinja", broken / "chat_template.jinja"
    )
    processor = Processor.load(broken)
    with pytest.raises(UserError, match="places 1 images and 0 videos, the messages hold 0 and 0"):
        processor(ask("hi"), tools=[{"type": "function", "function": {"name": "<|image_pad|>"}}])
    with pytest.raises(UserError, match="places 1 images and 1 videos, the messages hold 1 and 0"):
        processor(ask(picture(32, 32), "<|video_", "pad|>"))


def test_other_special_tokens_in_text_do_not_move_media(folder: Path, processor: Processor) -> None:
    """They become special tokens, as in transformers, but images stay where they are."""
    messages = ask("a <|vision_start|> b <|im_end|>", picture(32, 48), "<|vision_end|>")
    expected = reference_inputs(folder, [messages])
    inputs = processor(messages)
    np.testing.assert_array_equal(inputs.input_ids, expected["input_ids"][0])
    np.testing.assert_array_equal(inputs.positions, expected["positions"][:, 0])
