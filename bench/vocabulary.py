"""A byte-level BPE tokenizer of any size, with Qwen's split rule and special tokens and made-up merges.

Size and speed are the real one's; which letters make a token is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from string import ascii_lowercase, ascii_uppercase

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bench.micro.tokenizer import SPLIT
from engines.errors import UserError

# In the order of their ids, which follow the base vocabulary without a gap; the last are no control tokens.
CONTROL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>",
    "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
WORDS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
SPACE = "Ġ"  # how byte-level BPE writes it
Pair = tuple[str, str]


def byte_level_tokenizer(base: int) -> tuple[Tokenizer, list[Pair]]:
    """A tokenizer of `base` ordinary tokens, the 256 bytes first, and its merges; the same on every run.

    UserError for fewer tokens than bytes or more than there are merges to make.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(_merges(), max(0, base - len(alphabet))))
    if base != len(alphabet) + len(merges):
        raise UserError(
            f"a base vocabulary of {base} tokens: expected {len(alphabet)} or more, below 900,000"
        )
    vocabulary = {token: i for i, token in enumerate((*alphabet, *(a + b for a, b in merges)))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in CONTROL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in WORDS])
    return tokenizer, merges


def _merges() -> Iterator[Pair]:
    """Pairs of letters, with a space or a capital before them, then pairs of pairs in a shuffled order."""
    pairs = [a + b for a in ascii_lowercase for b in ascii_lowercase]
    yield from ((pair[0], pair[1]) for pair in pairs)
    yield from ((SPACE, pair) for pair in pairs)
    yield from ((SPACE, letter) for letter in ascii_lowercase + ascii_uppercase)
    yield from ((capital, pair) for capital in ascii_uppercase for pair in pairs)
    fours = [(a, b) for a in pairs for b in pairs]
    random.Random("merges").shuffle(fours)
    for a, b in fours:
        yield a, b
        yield SPACE + a, b
