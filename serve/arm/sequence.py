"""One answer in the making: chooses its tokens by the request's rules and turns them into text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from engines.constraint import Constraint
from engines.generate import TextStream
from engines.onnx_vision import UNSEEN, VisionTokens
from engines.penalties import Penalties
from engines.processor import Inputs
from engines.sampling import GREEDY, Sampling, descending, next_token
from serve.arm.turns import NOBODY, Client

Reason = Literal["stop", "length"]


@dataclass(frozen=True)
class Rules:
    """How tokens are chosen and when they end. logprobs: how many alternatives to report, None for no report
    at all. constrain_after: the token whose passing puts the constraint in force, None for the beginning."""

    max_tokens: int
    sampling: Sampling = GREEDY
    penalties: Penalties = field(default_factory=Penalties)
    stop: Sequence[str] = ()
    logprobs: int | None = None
    constrain_after: int | None = None


@dataclass(frozen=True)
class Token:
    """A token, the text it made certain (maybe none yet), and on the last one why it ended: stop or length.

    logprob: of the model itself, before the request's rules; likeliest: the best tokens and theirs.
    """

    token_id: int
    text: str
    finish_reason: Reason | None
    logprob: float = 0.0
    likeliest: tuple[tuple[int, float], ...] = ()


Emit = Callable[[Token | Exception], object]


@dataclass(eq=False)
class Answer:
    """A sequence for the scheduler. `emit` gets every token, from the engine's thread; an exception ends it.

    Whoever waits for it may set `cancelled` at any time. `reused`: prompt tokens that were not computed.
    """

    inputs: Inputs
    vision: VisionTokens
    rules: Rules
    tokenizer: Tokenizer
    eos: Sequence[int]
    emit: Emit
    constraint: Constraint | None = None
    client: Client = NOBODY
    cancelled: bool = False
    reused: int = 0
    said: list[int] = field(default_factory=list)
    arrived: float = field(default_factory=time.perf_counter)
    ttft: float = 0.0
    last_token: float = 0.0

    def __post_init__(self) -> None:
        self._text = TextStream(self.tokenizer, self.rules.stop)
        self._random = np.random.default_rng(self.rules.sampling.seed)
        self._constrained = self.constraint is not None and self.rules.constrain_after is None

    def forget_media(self) -> None:
        """Let go of pixels and features, which nobody needs once the prompt has been computed."""
        self.inputs, self.vision = replace(self.inputs, media=()), UNSEEN

    def choose(self, logits: NDArray[np.float32]) -> Token:
        """The token that follows, for logits [V]."""
        raw, rules = logits, self.rules
        if rules.penalties:
            logits = rules.penalties.apply(logits, self.inputs.input_ids, self.said)
        if self.constraint and self._constrained:
            logits = self.constraint.apply(logits)
        token = next_token(logits, rules.sampling, self._random)
        self.said.append(token)
        return self._report(token, raw)

    def _report(self, token: int, raw: NDArray[np.float32]) -> Token:
        ended = token in self.eos
        text = "" if ended else self._text.push(token)
        if self.constraint and self._constrained and not ended:
            self.constraint.accept(token)
            ended = self.constraint.complete
        self._constrained |= self.constraint is not None and token == self.rules.constrain_after
        ended |= self._text.stopped
        full = len(self.said) >= self.rules.max_tokens
        reason: Reason | None = "stop" if ended else "length" if full else None
        text += self._text.flush() if reason else ""
        if self.rules.logprobs is None:
            return Token(token, text, reason)
        return Token(token, text, reason, *log_probabilities(raw, token, self.rules.logprobs))


def log_probabilities(
    logits: NDArray[np.float32], token: int, count: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The log-probability of `token`, and the `count` likeliest tokens with theirs, for logits [V]."""
    highest = logits.max()
    logs = logits - (highest + np.log(np.exp(logits - highest, dtype=np.float64).sum()))
    best = descending(logits, count)
    return float(logs[token]), tuple((int(at), float(logs[at])) for at in best)
