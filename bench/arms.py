"""What is timed: a variant that answers prompts with a set number of tokens and says when each was there."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.process import died
from engines.errors import UserError, reason
from engines.lifetime import end_with

if TYPE_CHECKING:
    from engines.processor import Inputs
    from engines.session import Session


@dataclass(frozen=True)
class Stamps:
    """Seconds on the arm's clock: when it began, when every sequence had each of its tokens; vision_s of the
    time to the first went to images and videos."""

    began: float
    tokens: list[float]
    vision_s: float


# Answers prompts together, each with so many tokens.
Arm = Callable[[Sequence["Inputs"], int], Stamps]


def here(session: Session) -> Arm:
    """The arm of a session in this process."""
    return partial(_answer, session)


@contextmanager
def in_a_process(directory: Path, device: str = "cpu") -> Iterator[Arm]:
    """The arm of a checkpoint or artifact opened in a process of its own, which ends with the context.

    device: where a checkpoint runs, see engines.session. Raises UserError when it cannot be opened, and when
    the process dies.
    """
    context = get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(os.getpid(), directory, device, theirs), daemon=True)
    process.start()
    theirs.close()

    def receive() -> Any:
        try:
            return pipe.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise died(str(directory), process.exitcode or 0) from None

    def answer(prompts: Sequence[Inputs], output_tokens: int) -> Stamps:
        with suppress(ConnectionError):  # it is gone: receive tells
            pipe.send((prompts, output_tokens))
        stamps: Stamps = receive()
        return stamps

    try:
        if problem := receive():
            raise UserError(problem)
        yield answer
    finally:
        pipe.close()
        process.join()


def _serve(parent: int, directory: Path, device: str, pipe: Connection) -> None:
    """An arm's process: what is wrong with the folder, or None; then stamps for all that it is asked."""
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the terminal interrupts both processes; the parent says so
    with suppress(EOFError, ConnectionError):
        session = _opened(directory, device, pipe)
        with no_garbage_collection():
            while session:
                prompts, output_tokens = pipe.recv()
                pipe.send(_answer(session, prompts, output_tokens))


def _opened(directory: Path, device: str, pipe: Connection) -> Session | None:
    from engines.session import open_session

    try:
        session = open_session(directory, device=device)
    except Exception as error:
        if (told := reason(error)) is None:
            raise
        pipe.send(told)
        return None
    pipe.send(None)
    return session


def _answer(session: Session, prompts: Sequence[Inputs], output_tokens: int) -> Stamps:
    """Greedy tokens without regard to the end of the answer. Pictures are looked at as if for the first time:
    an arm that remembers them from the last repeat would look faster than it is to a new one."""
    session.forget()
    began = time.perf_counter()
    longest = max(len(prompt.input_ids) for prompt in prompts)
    logits, cache = session.prefill(prompts, capacity=longest + output_tokens)
    tokens = logits[:, -1].argmax(axis=-1)
    stamps = [time.perf_counter()]
    for _ in range(output_tokens - 1):
        tokens = session.decode(tokens, cache).argmax(axis=-1)
        stamps.append(time.perf_counter())
    return Stamps(began, stamps, session.vision_s)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """The collector rests meanwhile, having collected what there was."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
