"""Latency of several variants on the same requests, interleaved so that drift of the machine cancels.

Every arm generates the same number of tokens for each request, whatever it says: one that stops early must
not look fast. A request is timed from its preprocessed inputs, as preprocessing is the same for all arms. An
arm may be a process of its own, timed by its own clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.device import Usage, Watch
from engines.errors import UserError

if TYPE_CHECKING:
    from engines.processor import Inputs
    from engines.session import Session

SETTLE_S = 0.01  # thread pools of the arm before spin for some ms, on the cores the next one needs
# Answers a request with so many tokens; seconds at its start and after each token.
Arm = Callable[["Inputs", int], list[float]]
METRICS = ("ttft_ms", "itl_ms", "e2e_latency_ms", "output_tokens_per_s")


@dataclass(frozen=True)
class Timing:
    """One request answered once by one arm. `output_tokens_per_s` counts from the request's arrival."""

    arm: str
    request: int
    repeat: int
    prompt_tokens: int
    output_tokens: int
    ttft_ms: float
    itl_ms: float
    e2e_latency_ms: float
    output_tokens_per_s: float
    device: Usage | None = None  # what its GPU showed meanwhile


def measure(
    arms: Mapping[str, Arm],
    requests: Sequence[Inputs],
    *,
    output_tokens: int = 16,
    repeats: int = 2,
    warmup: int = 2,
    watch: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Times every arm on every request `repeats` times, after answering the first `warmup` ones untimed.

    watch: the arms run on this machine's GPU, which is asked how it is meanwhile.
    """
    if output_tokens < 2:
        raise ValueError(f"output_tokens is {output_tokens}; the time between tokens needs at least 2")
    for inputs in requests[:warmup]:
        for answer in arms.values():
            answer(inputs, output_tokens)
    total = len(requests) * repeats * len(arms)
    timings: list[Timing] = []
    with _no_garbage_collection():
        for request, repeat, arm in order(list(arms), len(requests), repeats):
            inputs = requests[request]
            time.sleep(SETTLE_S)
            with Watch() if watch else nullcontext() as gpu:
                began, *stamps = arms[arm](inputs, output_tokens)
            ttft, e2e = (stamps[0] - began) * 1e3, (stamps[-1] - began) * 1e3
            timings.append(
                Timing(
                    arm=arm,
                    request=request,
                    repeat=repeat,
                    prompt_tokens=len(inputs.input_ids),
                    output_tokens=output_tokens,
                    ttft_ms=ttft,
                    itl_ms=(e2e - ttft) / (output_tokens - 1),
                    e2e_latency_ms=e2e,
                    output_tokens_per_s=output_tokens / e2e * 1e3,
                    device=gpu.usage() if gpu else None,
                )
            )
            if progress:
                progress(len(timings), total)
    return timings


def order(arms: Sequence[str], requests: int, repeats: int) -> Iterator[tuple[int, int, str]]:
    """(request, repeat, arm) as measured: A B C, C B A for one request, B C A, A C B for the next.

    Mirroring cancels linear drift within a request; rotating gives every arm every place in the row.
    """
    for request in range(requests):
        turn = request % len(arms)
        row = [*arms[turn:], *arms[:turn]]
        for repeat in range(repeats):
            yield from ((request, repeat, arm) for arm in (row if repeat % 2 == 0 else reversed(row)))


def table(timings: Sequence[Timing], metric: str) -> NDArray[np.float64]:
    """One metric of one arm's timings as [requests, repeats]; ValueError if one is missing or repeated."""
    found = {(t.request, t.repeat): float(getattr(t, metric)) for t in timings}
    requests, repeats = (1 + max((key[axis] for key in found), default=-1) for axis in (0, 1))
    if not 0 < requests * repeats == len(found) == len(timings):
        raise ValueError(
            f"{len(timings)} timings of {requests} requests x {repeats} repeats; expected one of each"
        )
    return np.array([[found[i, j] for j in range(repeats)] for i in range(requests)])


def summarize(timings: Sequence[Timing]) -> dict[str, dict[str, dict[str, float]]]:
    """arm -> metric -> {p50, p95}."""
    return {
        arm: {metric: _quantiles(table(of_arm(timings, arm), metric)) for metric in METRICS}
        for arm in dict.fromkeys(t.arm for t in timings)
    }


def of_arm(timings: Sequence[Timing], arm: str) -> list[Timing]:
    """The timings of one arm."""
    return [timing for timing in timings if timing.arm == arm]


def _quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    p50, p95 = np.quantile(values, [0.5, 0.95])
    return {"p50": float(p50), "p95": float(p95)}


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
    process = context.Process(target=_serve, args=(directory, device, theirs), daemon=True)
    process.start()
    theirs.close()

    def receive() -> Any:
        try:
            return pipe.recv()
        except (EOFError, ConnectionError):
            process.join()
            raise UserError(
                f"{directory}: its process ended with code {process.exitcode}, likely out of memory"
            ) from None

    def answer(inputs: Inputs, output_tokens: int) -> list[float]:
        with suppress(ConnectionError):  # it is gone: receive tells
            pipe.send((inputs, output_tokens))
        stamps: list[float] = receive()
        return stamps

    try:
        if problem := receive():
            raise UserError(problem)
        yield answer
    finally:
        pipe.close()
        process.join()


def _serve(directory: Path, device: str, pipe: Connection) -> None:
    """An arm's process: what is wrong with the folder, or None; then stamps for every request."""
    from engines.session import open_session

    try:
        session = open_session(directory, device=device)
    except UserError as error:
        return pipe.send(str(error))
    pipe.send(None)
    with _no_garbage_collection():
        while True:
            try:
                inputs, output_tokens = pipe.recv()
            except EOFError:
                return None
            pipe.send(_answer(session, inputs, output_tokens))


def _answer(session: Session, inputs: Inputs, output_tokens: int) -> list[float]:
    """Greedy tokens without regard to the end of the answer; seconds at the start and after each token."""
    stamps = [time.perf_counter()]
    logits, cache = session.prefill([inputs], capacity=len(inputs.input_ids) + output_tokens)
    tokens = logits[:, -1].argmax(axis=-1)
    stamps.append(time.perf_counter())
    for _ in range(output_tokens - 1):
        tokens = session.decode(tokens, cache).argmax(axis=-1)
        stamps.append(time.perf_counter())
    return stamps


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
