"""Calibration sets: lines of JSON with messages and the answer expected, and the receipt of what was seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import UserError
from engines.processor import Inputs, Processor


@dataclass(frozen=True)
class Sample:
    """One conversation: messages in OpenAI's form and the text the model should answer with."""

    id: str
    messages: list[dict[str, Any]]
    answer: str


def read_samples(path: Path) -> list[Sample]:
    """Reads a calibration set: one object a line with `messages` and, optionally, `answer` and `id`.

    A sample without an id gets the sha256 of its line. Raises UserError naming file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the calibration set {path}: {error}") from None
    samples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{number}: not JSON ({error}); expected one object per line") from None
        if not isinstance(record, dict) or not isinstance(record.get("messages"), list):
            raise UserError(f"{path}:{number}: expected an object with a list of 'messages'")
        identity, answer = (
            record.get("id", hashlib.sha256(line.encode()).hexdigest()),
            record.get("answer", ""),
        )
        if not isinstance(identity, str) or not isinstance(answer, str):
            raise UserError(f"{path}:{number}: 'id' and 'answer' have to be strings")
        samples.append(Sample(identity, record["messages"], answer))
    if not samples:
        raise UserError(f"{path} holds no samples; expected one JSON object per line")
    return samples


def prepare(samples: Sequence[Sample], processor: Processor) -> list[Inputs]:
    """Prompts continued by their answers, so that the activations of answering are calibrated too."""
    prompts = []
    for sample in samples:
        try:
            prompt = processor(sample.messages)
        except UserError as error:
            raise UserError(f"calibration sample {sample.id[:12]}: {error}") from None
        prompts.append(prompt.extend(processor.tokenizer.encode(sample.answer, add_special_tokens=False).ids))
    return prompts


def receipt(
    path: Path, samples: Sequence[Sample], prompts: Sequence[Inputs], visual_tokens: int
) -> dict[str, Any]:
    """What was calibrated on: counts, the sha256 of the file and the id of every sample."""
    kinds = [media.kind for prompt in prompts for media in prompt.media]
    return {
        "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
        "samples": len(samples),
        "images": kinds.count("image"),
        "videos": kinds.count("video"),
        "tokens": sum(len(prompt.input_ids) for prompt in prompts),
        "visual_tokens": visual_tokens,
        "items": [sample.id for sample in samples],
    }
