"""Memory: an artifact really run, each time in a fresh process, which keeps so much of every request."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench.gate import gate
from bench.resources import after_each
from bench.trust.answers import UNLIMITED
from bench.verdict import Measurements, Verdict
from engines.session import Session, open_session


def verdicts(artifact: Path, *, kept: int, limit: int, processes: int) -> Iterator[Verdict]:
    """The gate's on a candidate that keeps `kept` bytes of a request, held to `limit`."""
    asked = UNLIMITED.model_copy(update={"max_growth_bytes": limit})
    # Forked from a process that has imported and run nothing: as fresh as a new one, and soon there.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, "engines.onnx_session"])
    with context.Pool(1, maxtasksperchild=1) as pool:
        for resident in pool.imap(partial(resident_bytes, artifact, kept), range(processes), chunksize=1):
            yield gate(Measurements("baseline", "candidate", resident_bytes=resident), asked).verdict


def resident_bytes(artifact: Path, kept: int, _run: int = 0) -> list[int]:
    """Of this process, after each request."""
    return after_each(Leaking(open_session(artifact, threads=1), kept))


class Leaking(Session):
    """A session that never lets go of a part of each prompt's memory."""

    vision_s = 0.0

    def __init__(self, session: Session, kept: int) -> None:
        self.session, self.config, self.kept = session, session.config, kept
        self.leaked: list[bytes] = []

    def prefill(self, *args: Any, **kwargs: Any) -> Any:
        """See Session.prefill."""
        self.leaked.append(b"\1" * self.kept)
        return self.session.prefill(*args, **kwargs)

    def extend(self, *args: Any) -> Any:
        """See Session.extend."""
        return self.session.extend(*args)

    def decode(self, *args: Any) -> Any:
        """See Session.decode."""
        return self.session.decode(*args)

    def forget(self) -> None:
        """See Session.forget."""
        self.session.forget()
