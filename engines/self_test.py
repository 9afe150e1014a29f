"""A question an artifact answers where it is made, and must answer alike wherever it starts to serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engines.artifact import canonical_digest, write_json
from engines.config import read_json
from engines.errors import UserError
from engines.onnx_session import OnnxSession
from engines.processor import Inputs, Processor

FILE = "self_test.json"
LENGTH = 16  # tokens, at most
# In logits: what the best token leads the second by. From the first lead that is less, the rounding of
# another processor might choose otherwise: the answer is compared no further.
LEAD = 0.5
# The one with the longest clear answer is kept.
PROMPTS = ("What is this?", "Which color is this?", "How many shapes are there?", "Describe the picture.")


@dataclass(frozen=True)
class Reference:
    """What is asked, how many tokens of the greedy answer are compared, and their digest (see `digest`)."""

    prompt: str
    tokens: int
    digest: str

    @classmethod
    def read(cls, directory: Path) -> Reference | None:
        """That of an artifact; None when it was made without one. UserError when it cannot be read."""
        path = directory / FILE
        if not path.exists():
            return None
        found = read_json(path)
        try:
            return cls(str(found["prompt"]), int(found["tokens"]), str(found["digest"]))
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{path} holds no prompt, tokens and digest: export it again") from None


def question(processor: Processor, prompt: str = PROMPTS[0]) -> Inputs:
    """About a picture, so that everything has to work."""
    slope = np.linspace(0, 255, 64, dtype=np.uint8)
    red, green = np.meshgrid(slope, slope)
    picture = Image.fromarray(np.stack([red, green, 255 - red], axis=-1))
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
    return processor([{"role": "user", "content": parts}])


def digest(inputs: Inputs, answer: Sequence[int]) -> str:
    """Of the prompt's tokens, which another tokenizer or template would change, and of the answer's."""
    return canonical_digest([inputs.input_ids.tolist(), list(answer)])


def record(directory: Path) -> None:
    """Ask the artifact just made in `directory`, and keep its clearest answer's digest there."""
    session, processor = OnnxSession(directory), Processor.load(directory)
    answers = {prompt: _answer(session, question(processor, prompt)) for prompt in PROMPTS}
    prompt, answer = max(answers.items(), key=lambda found: len(found[1]))
    known = digest(question(processor, prompt), answer)
    write_json(directory / FILE, {"prompt": prompt, "tokens": len(answer), "digest": known})


def _answer(session: OnnxSession, inputs: Inputs) -> list[int]:
    """The greedy answer up to its end or to the first token that leads by too little."""
    answer: list[int] = []
    logits, cache = session.prefill([inputs], capacity=len(inputs.input_ids) + LENGTH)
    row = logits[0, -1]
    while len(answer) < LENGTH and _lead(row) >= LEAD:
        answer.append(int(row.argmax()))
        if answer[-1] in session.config.eos_token_ids:
            break
        row = session.decode(np.array(answer[-1:]), cache)[0]
    return answer


def _lead(logits: NDArray[np.float32]) -> float:
    second, best = np.partition(logits, -2)[-2:]
    return float(best - second)
