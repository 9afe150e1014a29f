"""Text from a session: token by token as a stream, all at once, or greedily for a batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from engines.errors import UserError
from engines.processor import Inputs, Processor
from engines.sampling import GREEDY, Sampling
from engines.session import Session
from engines.speculation import tokens

__all__ = ["Chunk", "Completion", "Sampling", "generate", "generate_batch", "stream"]


@dataclass(frozen=True)
class Chunk:
    """One generated token and the text it made certain, which may be none yet.

    finish_reason, on the last chunk: "stop" (an end token or a stop string) or "length". drafted: guessed
    rightly, so that it took no pass of its own.
    """

    token_id: int
    text: str
    finish_reason: str | None
    drafted: bool = False


@dataclass(frozen=True)
class Completion:
    """A finished generation. token_ids and output_tokens count an end token, text leaves it out.

    tokens_per_pass: output tokens for each pass through the model, 1 without speculation.
    Times in ms: ttft from the call to the first token, itl the mean time between tokens, (last - first) /
    (output_tokens - 1) or 0 for a single token, e2e_latency from the call to the last token.
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    output_tokens: int
    tokens_per_pass: float
    finish_reason: str
    ttft_ms: float
    itl_ms: float
    e2e_latency_ms: float


class TextStream:
    """Turns tokens into text as it becomes certain.

    Held back: the bytes of an unfinished character, and whatever may turn out to begin a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Iterable[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = [string for string in stop if string]
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._held = ""

    def push(self, token_id: int) -> str:
        """Text that `token_id` made certain. Sets `stopped` and drops the rest at a stop string."""
        self._held += self._decoder.step(self._tokenizer, token_id) or ""
        found = [at for string in self._stop if (at := self._held.find(string)) >= 0]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        certain = len(self._held) - max(map(self._overlap, self._stop), default=0)
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def flush(self) -> str:
        """The text still held when no more tokens come; bytes of an unfinished character are dropped."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)


def stream(
    session: Session,
    processor: Processor,
    inputs: Inputs,
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    speculate: bool | None = None,
) -> Iterator[Chunk]:
    """Generate up to `max_tokens` tokens, ending early at an end token or a string of `stop`.

    speculate: guess several tokens from the text so far and check them in one pass: always, never, or where
    it pays (None); the tokens are the same.

    Raises UserError when the prompt and max_tokens do not fit the model.
    """
    _check(max_tokens)
    text = TextStream(processor.tokenizer, stop)
    said = tokens(session, inputs, max_tokens, sampling, speculate)
    for count, (token, drafted) in enumerate(said, start=1):
        ended = token in session.config.eos_token_ids
        shown = "" if ended else text.push(token)
        if ended or text.stopped or count == max_tokens:
            reason = "stop" if ended or text.stopped else "length"
            yield Chunk(token, shown + text.flush(), reason, drafted)
            return
        yield Chunk(token, shown, None, drafted)


def generate(
    session: Session,
    processor: Processor,
    inputs: Inputs,
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    speculate: bool | None = None,
    on_text: Callable[[str], object] = lambda _: None,
) -> Completion:
    """The whole completion of `inputs`; see stream. on_text gets each piece of text as it comes."""
    start, times, chunks = time.perf_counter(), [], []
    options: dict[str, Any] = {"sampling": sampling, "stop": stop, "speculate": speculate}
    for chunk in stream(session, processor, inputs, max_tokens=max_tokens, **options):
        times.append(time.perf_counter() - start)
        chunks.append(chunk)
        on_text(chunk.text)
    token_ids = [chunk.token_id for chunk in chunks]
    text, reason = "".join(chunk.text for chunk in chunks), chunks[-1].finish_reason or ""
    passes = sum(not chunk.drafted for chunk in chunks)
    return _completion(inputs, token_ids, passes, text, reason, times[0], times[-1])


def generate_batch(
    session: Session, processor: Processor, prompts: Sequence[Inputs], max_tokens: int
) -> list[Completion]:
    """Greedy completions of several prompts at once, equal to each one's alone.

    Times are the batch's: sequences that ended earlier stay in it until the last one has.
    """
    _check(max_tokens)
    start, eos = time.perf_counter(), session.config.eos_token_ids
    capacity = max(len(prompt.input_ids) for prompt in prompts) + max_tokens
    logits, cache = session.prefill(prompts, capacity=capacity)
    tokens, times = [logits[:, -1].argmax(-1)], [time.perf_counter() - start]
    running = ~np.isin(tokens[0], eos)
    while running.any() and len(tokens) < max_tokens:
        tokens.append(session.decode(tokens[-1], cache).argmax(-1))
        times.append(time.perf_counter() - start)
        running &= ~np.isin(tokens[-1], eos)
    completions = []
    for prompt, row in zip(prompts, np.stack(tokens, axis=1).tolist(), strict=True):
        ends = [at for at, token in enumerate(row) if token in eos]
        token_ids = row[: ends[0] + 1] if ends else row
        text = TextStream(processor.tokenizer)
        shown = "".join(text.push(token) for token in token_ids if token not in eos)
        last = times[len(token_ids) - 1]
        reason = "stop" if ends else "length"
        completions.append(_completion(prompt, token_ids, len(token_ids), shown, reason, times[0], last))
    return completions


def _check(max_tokens: int) -> None:
    if max_tokens < 1:
        raise UserError(f"max_tokens is {max_tokens}: expected at least 1")


def _completion(
    inputs: Inputs,
    token_ids: Sequence[int],
    passes: int,
    text: str,
    reason: str,
    first: float,
    last: float,
) -> Completion:
    """`first` and `last` are the seconds from the call to the first and to the last token."""
    gaps = len(token_ids) - 1
    return Completion(
        text=text,
        token_ids=tuple(token_ids),
        prompt_tokens=len(inputs.input_ids),
        output_tokens=len(token_ids),
        tokens_per_pass=len(token_ids) / passes,
        finish_reason=reason,
        ttft_ms=1000 * first,
        itl_ms=1000 * (last - first) / gaps if gaps else 0.0,
        e2e_latency_ms=1000 * last,
    )
