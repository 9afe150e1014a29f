"""A language model that is a table, and a processor whose text is numbers: answers can be worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from engines.cache import Cache
from engines.processor import Inputs

END = 0


class TableSession:
    """Logits of the next token are the row of the last one. Keeps a log of what it was asked."""

    vision_s = 0.0

    def __init__(self, table: NDArray[np.floating]) -> None:
        self.table = table.astype(np.float32)
        text = SimpleNamespace(max_position_embeddings=10_000, vocab_size=len(table))
        self.config: Any = SimpleNamespace(eos_token_ids=(END,), text=text)
        self.batches: list[list[int]] = []
        self.decoded = 0
        self.extended: list[int] = []
        self.forgotten = 0

    def forget(self) -> None:
        self.forgotten += 1

    def prefill(
        self, prompts: Sequence[Inputs], *, capacity: int, keep: int = 1
    ) -> tuple[NDArray[np.float32], Cache]:
        lengths = np.array([len(prompt.input_ids) for prompt in prompts])
        assert capacity >= lengths.max()
        assert keep <= lengths.min()
        self.batches.append(lengths.tolist())
        logits = np.stack([self.table[prompt.input_ids[-keep:]] for prompt in prompts])
        return logits, Cache(lengths, lengths.copy(), capacity, None)

    def extend(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        cache.check_extend(tokens)
        cache.advance(tokens.shape[1])
        self.extended.append(tokens.shape[1])
        return self.table[tokens]

    def decode(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        self.decoded += 1
        return self.extend(tokens[:, None], cache)[:, 0]


class NumberProcessor:
    """Content "3 1 4" is three tokens, and so are they read."""

    tokenizer = Tokenizer(WordLevel({str(i): i for i in range(100)}, unk_token="0"))

    def decode(self, ids: NDArray[np.int64], *, skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, ids))

    def __call__(self, messages: Sequence[dict[str, Any]]) -> Inputs:
        return Inputs.text([int(word) for word in messages[-1]["content"].split()])


def chain(successors: Sequence[int], strength: float = 8.0) -> NDArray[np.floating]:
    """A table in which token i is followed by successors[i]."""
    return strength * np.eye(len(successors))[list(successors)]
