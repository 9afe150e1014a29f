"""Loads tokenizer.json and holds it against the model it is to feed."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from engines.config import ModelConfig
from engines.errors import UserError

IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"


def load_tokenizer(directory: Path, config: ModelConfig) -> Tokenizer:
    """The folder's tokenizer.

    UserError if it is missing or broken, has ids beyond the embedding's rows, or gives the vision tokens
    other ids than config.json does.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: a checkpoint folder in the Hugging Face layout has it")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise UserError(f"{path} cannot be read: {error}") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= config.text.vocab_size:
        raise UserError(
            f"{path} has token ids up to {highest}, the embedding has {config.text.vocab_size} rows: "
            "the tokenizer belongs to another checkpoint"
        )
    expected = {
        IMAGE_PAD: config.image_token_id,
        VIDEO_PAD: config.video_token_id,
        VISION_START: config.vision_start_token_id,
        VISION_END: config.vision_end_token_id,
    }
    for token, token_id in expected.items():
        if (found := tokenizer.token_to_id(token)) != token_id:
            raise UserError(
                f"{path} gives {token} the id {found}, config.json says {token_id}: "
                "the tokenizer belongs to another checkpoint"
            )
    if any(not 0 <= token_id < config.text.vocab_size for token_id in config.eos_token_ids):
        raise UserError(
            f"eos_token_id {config.eos_token_ids} goes beyond the embedding's {config.text.vocab_size} rows"
        )
    return tokenizer
