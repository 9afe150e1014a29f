"""Holds an answer to a JSON schema: before each token, those that would leave the schema are ruled out.

llguidance walks the schema and the vocabulary's tree together, so a step takes well under a millisecond.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engines.config import ModelConfig
from engines.errors import UserError

LAYOUT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # json.dumps'


class Grammar:
    """A vocabulary prepared for constraints. Takes a second for a large one: make it once."""

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self._vocabulary = LLTokenizer(
            tokenizer.to_str(), n_vocab=config.text.vocab_size, eos_token=list(config.eos_token_ids)
        )

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token, which may be part of a character."""
        return self._vocabulary.decode_bytes([token])

    def json(self, schema: Mapping[str, Any]) -> Constraint:
        """One answer's constraint; UserError for a schema that is none, or asks what cannot be held."""
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=LAYOUT)
        except ValueError as error:
            raise UserError(f"the JSON schema cannot be used: {_line(error)}") from None
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(f"the JSON schema cannot be used: {_line(matcher.get_error())}")
        return Constraint(matcher)


class Constraint:
    """Where one answer stands in its schema."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """Whether the answer has to end here."""
        return self._matcher.is_stopped()

    def apply(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy of logits [V], minus infinity where a token would leave the schema."""
        allowed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(allowed, bitorder="little", count=len(logits)).astype(bool)
        return np.where(bits, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Go on after `token`."""
        self._matcher.consume_token(token)
        if self._matcher.is_error():
            raise UserError(
                f"the answer cannot be held to its JSON schema: {_line(self._matcher.get_error())}"
            )


def _line(error: object) -> str:
    return str(error).strip().splitlines()[0]
