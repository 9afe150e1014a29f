"""How much speculation saves or costs, on texts that copy from their prompt and on texts that do not.

A random checkpoint says nothing of use, so the tokens are a script's: the model computes every pass in full,
then the script's token gets the highest logit. Drafts are made, checked and timed as in any generation.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.statistics import median_ratio
from engines.cache import Cache
from engines.onnx_session import OnnxSession
from engines.processor import Inputs
from engines.sampling import Sampling
from engines.speculation import tokens

PROMPT, ANSWER = 256, 128  # tokens
SCRIPTS = 4
COPIED = {"extraction": (10, 30), "no repeats": (0, 0), "false starts": (2, 2)}  # lengths of copied spans


class Scripted:
    """The session, saying the script's tokens after one and the same prompt, which is prefilled once."""

    def __init__(self, session: OnnxSession, prompt: Inputs, script: NDArray[np.int64]) -> None:
        self.session, self.script, self.config = session, script, session.config
        self.logits, self.cache = session.prefill([prompt], capacity=PROMPT + ANSWER)
        self.logits[:, -1, script[0]] = np.inf

    def prefill(self, prompts: list[Inputs], **_: Any) -> tuple[NDArray[np.float32], Cache]:
        self.cache.rewind(int(self.cache.lengths[0]) - PROMPT)
        return self.logits, self.cache

    def extend(self, tokens: NDArray[np.int64], cache: Cache) -> NDArray[np.float32]:
        logits = self.session.extend(tokens, cache)
        stop = int(cache.lengths[0]) - PROMPT + 1
        said = self.script[stop - tokens.shape[1] : stop]
        logits[0, np.arange(len(said)), said] = np.inf
        return logits


def script(kind: str, vocabulary: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """A prompt and its answer: spans of the prompt with one to four new tokens between."""
    random = np.random.default_rng(seed)
    fresh = iter(random.permutation(vocabulary - 1000)[: PROMPT + 2 * ANSWER])  # no token occurs twice
    prompt = np.array([next(fresh) for _ in range(PROMPT)])
    answer: list[int] = []
    low, high = COPIED[kind]
    while len(answer) < ANSWER:
        size = int(random.integers(low, high + 1))
        start = int(random.integers(0, PROMPT - size))
        answer += [int(token) for token in prompt[start : start + size]]
        answer += [int(next(fresh)) for _ in range(random.integers(1, 5))]
    return prompt, np.array(answer[:ANSWER])


@pytest.mark.parametrize("kind", COPIED)
def test_ratio(kind: str, session: OnnxSession, benchmark: Any) -> None:
    if session.config.text.vocab_size < 2000:
        pytest.skip("a script without repeats needs a large vocabulary: --artifact DIR")
    seconds: dict[bool, list[list[float]]] = {True: [], False: []}
    passes = []

    def timed(model: Scripted, inputs: Inputs, adaptive: bool) -> float:
        """Seconds from the first token, which drafts do not touch, to the last."""
        speculate = None if adaptive else False
        said = tokens(model, inputs, ANSWER, Sampling(), speculate)  # type: ignore[arg-type]
        found = [next(said)]
        start = time.perf_counter()
        found += said
        took = time.perf_counter() - start
        assert [token for token, _ in found] == model.script.tolist()
        if adaptive:
            passes.append(sum(not free for _, free in found))
        return took

    def run() -> None:
        for seed in range(SCRIPTS):
            ids, answer = script(kind, session.config.text.vocab_size, seed)
            inputs = Inputs(ids, np.tile(np.arange(PROMPT), (3, 1)), (), PROMPT)
            model = Scripted(session, inputs, answer)
            order = (True, False, False, True) if seed % 2 else (False, True, True, False)
            taken = [(adaptive, timed(model, inputs, adaptive)) for adaptive in order]
            for adaptive, rows in seconds.items():
                rows.append([took for which, took in taken if which == adaptive])

    benchmark.pedantic(run, rounds=1)
    ratio = median_ratio(np.array(seconds[True]), np.array(seconds[False]))
    benchmark.extra_info["line"] = (
        f"speculation, {kind}: {ratio.estimate:.2f} times as fast ({ratio.low:.2f} to {ratio.high:.2f}), "
        f"{ANSWER * len(passes) / sum(passes):.2f} tokens a pass"
    )
