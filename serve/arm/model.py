"""A loaded artifact: all that answering takes, and the facts it is known by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from engines.artifact import MANIFEST, Manifest, hash_file
from engines.config import ModelConfig, read_json, validation_message
from engines.constraint import Grammar
from engines.engine_files import ENGINE_FACTS
from engines.errors import UserError
from engines.memory import available_memory
from engines.one_slot import OneSlot
from engines.onnx_files import DECODER
from engines.onnx_session import OnnxSession
from engines.penalties import Penalties
from engines.processor import Processor
from engines.sampling import Sampling
from engines.self_test import LENGTH, Reference, digest, question
from engines.session import open_session
from engines.slots import OnnxSlots, Slots
from serve.arm.memory import choose_context
from serve.arm.metrics import Metrics
from serve.arm.scheduler import Scheduler
from serve.arm.sequence import Answer, Rules, Token

# What a tokenizer or template of another checkpoint would silently spoil.
SIDE_FILES = {".json", ".jinja", ".txt"}


@dataclass(frozen=True, eq=False)
class Model:
    """`defaults`: the checkpoint's own sampling, for what a request leaves out."""

    processor: Processor
    slots: Slots
    scheduler: Scheduler
    defaults: dict[str, Any]
    reference: Reference | None = None

    @cached_property
    def grammar(self) -> Grammar:
        """Made by the first request that needs it."""
        return Grammar(self.processor.tokenizer, self.processor.config)

    @cached_property
    def most_characters(self) -> int:
        """More of them make more tokens than the context has, however they are cut."""
        return self.slots.capacity * max(map(len, self.processor.tokenizer.get_vocab()))

    def self_test(self) -> str:
        """Answer the artifact's own question; returns what can be said of it, UserError when it is wrong."""
        found: SimpleQueue[Token | Exception] = SimpleQueue()
        reference = self.reference
        inputs = question(self.processor, reference.prompt) if reference else question(self.processor)
        length = max(1, reference.tokens if reference else LENGTH)
        rules, eos = Rules(max_tokens=length, logprobs=0), self.processor.config.eos_token_ids
        vision = self.slots.see(inputs)
        self.scheduler.submit(Answer(inputs, vision, rules, self.processor.tokenizer, eos, found.put))
        tokens: list[int] = []
        while True:
            token = found.get()
            if isinstance(token, Exception):
                raise UserError(f"the self-test failed: {token}; build the artifact again")
            if not math.isfinite(token.logprob):
                raise UserError("the self-test failed: the logits are no numbers; build the artifact again")
            tokens.append(token.token_id)
            if token.finish_reason:
                break
        if reference is None:
            return "self-test: it answers; there is no reference answer to compare with"
        answered = digest(inputs, tokens[: reference.tokens])
        if answered != reference.digest:
            raise UserError(
                f"the self-test failed: an answer of digest {answered[:19]}, expected "
                f"{reference.digest[:19]}: weights, tokenizer and template do not belong together; build the "
                "artifact again"
            )
        return f"self-test passed: {reference.tokens} tokens of digest {answered[:19]}"


def load(
    directory: Path,
    metrics: Metrics,
    *,
    slots: int,
    context: int | None,
    threads: int | None,
    device: str,
    tell: Callable[[str], object],
) -> Model:
    """Open a variant and start its scheduler.

    Raises UserError, before anything large is read, when side files do not belong to it or memory is short.
    """
    check_side_files(directory)
    config = ModelConfig.load(directory)
    processor = Processor.load(directory)
    found = choose_context(directory, config, slots=slots, context=context, memory=available_memory())
    where = "GPU" if device != "cpu" or (directory / ENGINE_FACTS).is_file() else "CPU"
    tell(f"loading {directory} on the {where}, at most {found}")
    rows = _open(directory, slots, found.context, threads, device)
    scheduler = Scheduler(rows, metrics)
    scheduler.start()
    return Model(processor, rows, scheduler, sampling_defaults(directory), Reference.read(directory))


def one_at_a_time(directory: Path) -> bool:
    """Whether a variant answers one request after the other: a checkpoint does, and engines of a GPU."""
    return not (directory / DECODER).is_file() or (directory / ENGINE_FACTS).is_file()


def _open(directory: Path, slots: int, context: int, threads: int | None, device: str) -> Slots:
    if not one_at_a_time(directory):
        return OnnxSlots(OnnxSession(directory, threads=threads), slots, context)
    try:
        return OneSlot(open_session(directory, threads=threads, device=device), context)
    except ImportError as error:
        raise UserError(
            f"{directory} is run by {error.name}, which is not installed: serve an ONNX variant, or install "
            "requirements/dev.txt"
        ) from None


def read_manifest(directory: Path) -> Manifest | None:
    """None for an artifact that was exported and not built."""
    return Manifest.read(directory) if (directory / MANIFEST).exists() else None


def check_side_files(directory: Path) -> None:
    """UserError when config, tokenizer or template are not those the weights were built with."""
    manifest = read_manifest(directory)
    for name, expected in manifest.files.items() if manifest else ():
        path = directory / name
        if path.suffix in SIDE_FILES and (not path.is_file() or hash_file(path) != expected):
            raise UserError(
                f"{path} is not the file these weights were built with: its sha256 differs from "
                f"{MANIFEST}'s; put the original back or build the artifact again"
            )


class _GenerationConfig(BaseModel):
    """What is read of it; numbers have the ranges that a request's have."""

    model_config = ConfigDict(strict=True)
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def sampling_defaults(directory: Path) -> dict[str, Any]:
    """What generation_config.json says of sampling; without a word of it OpenAI's temperature of 1.

    UserError for what nothing could be sampled by.
    """
    path = directory / "generation_config.json"
    try:
        found = _GenerationConfig.model_validate(read_json(path) if path.exists() else {})
    except ValidationError as error:
        raise UserError(f"{path}: {validation_message(error)}") from None
    if found.do_sample is False:
        return {"temperature": 0.0}
    defaults = {"temperature": 1.0} | found.model_dump(exclude_none=True, exclude={"do_sample"})
    try:
        Sampling(defaults["temperature"], defaults.get("top_p", 1.0), min_p=defaults.get("min_p", 0.0))
        Penalties(repetition=defaults.get("repetition_penalty", 1.0))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return defaults
