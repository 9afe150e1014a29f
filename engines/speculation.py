"""Prompt-lookup decoding: guess the next tokens from the text so far, check all guesses in one pass.

A pass over few tokens reads the same weights as a pass over one, so on a CPU it costs little more; answers
that copy from their prompt then come several tokens at a time (Saxena, 2023, Prompt Lookup Decoding).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engines.processor import Inputs
from engines.sampling import Sampling, next_token
from engines.session import Session

NGRAMS = (3, 2)  # lengths of the ends looked up, in this order; one token alone foretells little
LONGEST = 7  # guesses in a draft
LOSS = 0.02  # part of the time of plain steps that failed drafts may cost


def tokens(
    session: Session, inputs: Inputs, max_tokens: int, sampling: Sampling, speculate: bool | None
) -> Iterator[tuple[int, bool]]:
    """Up to `max_tokens` tokens after a prompt, each with whether it took no pass of its own.

    speculate: draft always, never, or (None) where it pays. The tokens are the same: each is chosen from the
    model's logits with the request's random numbers, whether a draft foretold it or not. Kernels that round
    activations to 8 bits do so a little differently for one token and for several, as for a batch: there a
    tie between two tokens may fall the other way.
    """
    random = np.random.default_rng(sampling.seed)
    logits, cache = session.prefill([inputs], capacity=len(inputs.input_ids) + max_tokens)
    token = next_token(logits[0, -1], sampling, random)
    yield token, False
    text, count = np.empty(len(inputs.input_ids) + max_tokens, np.int64), len(inputs.input_ids) + 1
    text[:count] = *inputs.input_ids, token
    pace = Pace()
    while count < len(text):
        draft = NO_DRAFT
        if speculate is not False:
            draft = lookup(text[:count], min(LONGEST, len(text) - count - 1))
            draft = draft if speculate else draft[: pace.draft_size(len(draft))]
        start = time.perf_counter()
        rows = session.extend(np.append(token, draft)[None], cache)[0]
        seconds = time.perf_counter() - start
        for accepted, (row, guess) in enumerate(zip(rows, [*draft, None], strict=True)):
            token = next_token(row, sampling, random)
            text[count] = token
            count += 1
            yield token, accepted > 0
            if token != guess:
                break
        cache.rewind(len(draft) - accepted)
        pace.record(seconds, len(draft), accepted)


NO_DRAFT = np.empty(0, np.int64)


def lookup(text: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` tokens that may follow `text`: those after the latest earlier occurrence of its last three
    tokens, else of its last two, else none.

    An occurrence so late that fewer follow is a loop, and the draft goes around it.
    """
    for size in NGRAMS:
        starts = np.flatnonzero(_occurrences(text[:-1], text[-size:]))
        if starts.size:
            return np.resize(text[starts[-1] + size :], count)
    return NO_DRAFT


def _occurrences(text: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether `end` begins at each position of `text` at which it can."""
    positions = max(0, len(text) - len(end) + 1)
    found = np.ones(positions, bool)
    for offset, token in enumerate(end):
        found &= text[offset : offset + positions] == token
    return found


class Pace:
    """How long drafts should be, from what passes took and how many guesses came true.

    Times are in plain steps. An account keeps what drafts have saved: a draft is made only if the account
    could pay for its failing whole, and plain steps pay in LOSS each, so decoding is never slower by much
    more than that. The account is capped, or text that stops repeating would use up all it had saved.
    """

    def __init__(self) -> None:
        self._account, self._most = 1.0, 3.0
        self._steps = 0
        self._step_seconds = 0.0
        self._guess_cost = 0.35  # of a pass, for each guess beyond its first token; then as measured
        self._came_true, self._tried = 3.0, 4.0

    def draft_size(self, longest: int) -> int:
        """The most profitable number of guesses up to `longest`; 0 when none pays or none is affordable."""
        if not self._steps:
            return 0  # what a plain step takes is the measure of all else
        affordable = min(longest, max(0, int(self._account / self._guess_cost)))
        chance = self._came_true / self._tried
        sizes = np.arange(affordable + 1)
        speed = np.cumsum(chance**sizes) / (1 + self._guess_cost * sizes)
        return int(speed.argmax())

    def record(self, seconds: float, drafted: int, accepted: int) -> None:
        """Learn from a pass over one token and `drafted` guesses, of which `accepted` came true."""
        self._came_true += 0.1 * (3.0 - self._came_true)  # old failures fade, or no draft were tried again
        self._tried += 0.1 * (4.0 - self._tried)
        if not drafted:
            self._steps += 1
            self._step_seconds += (seconds - self._step_seconds) / min(self._steps, 10)
            saved = LOSS
        else:
            cost = seconds / self._step_seconds if self._steps else 1.0
            self._guess_cost += 0.2 * (max((cost - 1) / drafted, 0.05) - self._guess_cost)
            self._came_true += accepted
            self._tried += accepted + (accepted < drafted)
            saved = 1 + accepted - cost
        self._account = min(self._account + saved, self._most)
