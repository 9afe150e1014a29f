"""The checkpoint's tokenizer: byte-level BPE with Qwen's split rule, special tokens and chat template."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.micro.assets import CHARS, SHAPES
from bench.micro.atlas import PLACES
from bench.micro.draw import CLASSES, COLOR_NAMES
from bench.micro.samples import ORDINALS
from bench.micro.tasks import FAMILIES

VOCAB = 512
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Qwen3-VL's published template without its tools part.
CHAT_TEMPLATE = """\
{%- set image_count = namespace(value=0) %}
{%- set video_count = namespace(value=0) %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for content in message.content %}
            {%- if content.type == 'image' or 'image' in content or 'image_url' in content %}
                {%- set image_count.value = image_count.value + 1 %}
                {%- if add_vision_id %}{{- 'Picture ' ~ image_count.value ~ ': ' }}{%- endif %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif content.type == 'video' or 'video' in content %}
                {%- set video_count.value = video_count.value + 1 %}
                {%- if add_vision_id %}{{- 'Video ' ~ video_count.value ~ ': ' }}{%- endif %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in content %}
                {{- content.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def train_tokenizer() -> Tokenizer:
    """BPE over the questions, the words that answer them and a part of the place names."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _corpus() -> list[str]:
    rng = random.Random(7)
    lines = []
    for family in FAMILIES.values():
        for _ in range(400):
            sample = family.draw(rng, "train", family.layout(rng), None)
            lines += ["user\n" + question for question, _ in sample.turns]
    lines += [f"<{second}.{tenth} seconds>" for second in range(7) for tenth in range(10)] * 5
    # Single symbols only, never a text: letters must not merge with their neighbours.
    lines += [*CHARS, *SHAPES, *COLOR_NAMES, *ORDINALS, "yes", "no", "assistant\n"] * 200
    return lines + PLACES[:600]


class MicroTokens:
    """Token ids by name, and encoding with a cache: training meets the same few thousand strings again."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.image, self.video, self.vision_start, self.vision_end, self.pad, self.end = (
            self._special(name)
            for name in (
                "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>",
                "<|endoftext|>", "<|im_end|>",
            )
        )  # fmt: skip
        self.encode = cache(self._encode)
        self.user = self.encode("<|im_start|>user\n")
        self.assistant = self.encode("<|im_end|>\n<|im_start|>assistant\n")
        self.newline = self.encode("\n")
        # What the auxiliary loss predicts for a cell: the token of its symbol or word, and of its colour.
        self.classes = [self._single(name) for name in CLASSES]
        self.colors = [self._single(name) for name in COLOR_NAMES]

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _special(self, name: str) -> int:
        token = self.tokenizer.token_to_id(name)
        assert isinstance(token, int), name
        return token

    def _single(self, word: str) -> int:
        (token,) = self.encode(word)
        return token


def write_side_files(tokenizer: Tokenizer, out: Path) -> None:
    """Everything of a Hugging Face checkpoint but its config and weights."""
    tokenizer.save(str(out / "tokenizer.json"))
    tokens = MicroTokens(tokenizer)
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    special = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": SPECIAL[1:],
    }
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            **special,
        },
    )
    _write_json(out / "generation_config.json", {
        "do_sample": False, "eos_token_id": [tokens.end, tokens.pad], "pad_token_id": tokens.pad,
    })  # fmt: skip
    pixels = {
        "patch_size": 8, "temporal_patch_size": 2, "merge_size": 2,
        "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
    }  # fmt: skip
    # Limits in pixels, of one image and of all frames together: pictures of the tasks pass unchanged.
    _write_json(out / "preprocessor_config.json", {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 16 * 16, "longest_edge": 128 * 128}, **pixels,
    })  # fmt: skip
    _write_json(out / "video_preprocessor_config.json", {
        "video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": 2 * 16 * 16, "longest_edge": 32 * 64 * 64},
        "fps": 2, "min_frames": 2, "max_frames": 32, "do_sample_frames": False, "cap_pixels_per_frame": False,
        **pixels,
    })  # fmt: skip


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
