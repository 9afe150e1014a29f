"""Who computes next: a thread that alternates between everyone's next token and a piece of one prompt.

Clients get slots in turn, each for its sequences in the order they came. One prompt at a time is computed, in
chunks, and between two chunks all running sequences get a token: a long prompt slows streams down but never
holds one up for longer than STALL. Nothing but this thread touches the slots.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback

import numpy as np
from numpy.typing import NDArray

from engines.errors import UserError
from engines.slots import Slot, Slots
from serve.arm.metrics import Metrics
from serve.arm.sequence import Answer
from serve.arm.turns import Turns

CHUNK = 512  # tokens of a prompt computed at once while nobody else is running
SMALLEST = 16  # and at least, however slow the machine: smaller chunks read all weights for little
STALL = 0.2  # seconds a chunk may keep running streams waiting


class Scheduler:
    """Continuous batching over slots, in a thread of its own from `start` to `stop`."""

    def __init__(self, slots: Slots, metrics: Metrics) -> None:
        self._slots, self._metrics = slots, metrics
        self._inbox: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._waiting: Turns[Answer] = Turns()
        self._filling: tuple[Slot, Answer] | None = None
        self._running: dict[Slot, Answer] = {}
        self._tokens_per_second = SMALLEST / STALL  # of prompts; then as measured
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self.failure: Exception | None = None
        metrics.running.set_function(lambda: self.busy)

    @property
    def busy(self) -> int:
        """Sequences in a slot."""
        return len(self._running) + (self._filling is not None)

    def start(self) -> None:
        """Begin taking sequences."""
        self._thread.start()

    def submit(self, answer: Answer) -> None:
        """Queue a sequence; from any thread."""
        self._inbox.put(answer)
        if self.failure:
            answer.emit(self.failure)

    def stop(self) -> None:
        """End the thread; sequences still running are left as they are."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._receive():
                self._drop_cancelled()
                self._fill()
                self._step()
        except Exception as error:  # without its thread an arm is dead: say so to all who wait
            self.failure = error
            traceback.print_exception(error)
            for answer in self._everyone():
                answer.emit(error)

    def _receive(self) -> bool:
        """Take what was submitted, waiting for it if there is nothing else to do; False at the end."""
        idle = not (self._waiting or self._filling or self._running)
        while True:
            try:
                answer = self._inbox.get(block=idle)
            except queue.Empty:
                break
            if answer is None:
                return False
            self._waiting.put(answer.client, answer)
            idle = False
        return True

    def _drop_cancelled(self) -> None:
        self._waiting.drop(lambda answer: answer.cancelled)
        if self._filling and self._filling[1].cancelled:
            self._slots.close(self._filling[0])
            self._filling = None
        for slot in [slot for slot, answer in self._running.items() if answer.cancelled]:
            self._end(slot)

    def _fill(self) -> None:
        """Compute the next chunk of the prompt at hand, or of the next one."""
        self._filling = self._filling or self._admit()
        if not self._filling:
            return
        slot, answer = self._filling
        limit = max(SMALLEST, int(self._tokens_per_second * STALL)) if self._running else CHUNK
        before, start = slot.length, time.perf_counter()
        try:
            logits = self._slots.prefill(slot, min(limit, CHUNK))
        except UserError as error:  # this prompt's own: the others go on
            self._slots.close(slot)
            self._filling = None
            answer.emit(error)
            return
        rate = (slot.length - before) / (time.perf_counter() - start)
        self._tokens_per_second += 0.3 * (rate - self._tokens_per_second)
        if logits is not None:
            self._filling = None
            answer.forget_media()
            self._running[slot] = answer
            self._say(slot, answer, logits)

    def _admit(self) -> tuple[Slot, Answer] | None:
        answer = self._waiting.first()
        slot = answer and self._slots.open(answer.inputs, answer.vision)
        if not answer or not slot:
            return None
        self._waiting.take()
        answer.reused = slot.length
        self._metrics.queue.observe(time.perf_counter() - answer.arrived)
        self._metrics.prompt_tokens.inc(len(answer.inputs.input_ids))
        self._metrics.cached_tokens.inc(answer.reused)
        return slot, answer

    def _step(self) -> None:
        """One token for every running sequence."""
        slots = list(self._slots.active)
        if not slots:
            return
        self._metrics.batch.observe(len(slots))
        logits = self._slots.decode(np.array([self._running[slot].said[-1] for slot in slots]))
        for slot, row in zip(slots, logits, strict=True):
            self._say(slot, self._running[slot], row)

    def _say(self, slot: Slot, answer: Answer, logits: NDArray[np.float32]) -> None:
        try:
            token = answer.choose(logits)
        except UserError as error:  # this answer's own: the others go on
            answer.emit(error)
            self._end(slot)
            return
        now = time.perf_counter()
        if answer.last_token:
            self._metrics.itl.observe(now - answer.last_token)
        else:
            answer.ttft = now - answer.arrived
            self._metrics.ttft.observe(answer.ttft)
        answer.last_token = now
        self._metrics.output_tokens.inc()
        if token.finish_reason:
            self._end(slot)
        answer.emit(token)

    def _end(self, slot: Slot) -> None:
        del self._running[slot]
        self._slots.close(slot)

    def _everyone(self) -> list[Answer]:
        filling = [self._filling[1]] if self._filling else []
        arrived = [self._inbox.get() for _ in range(self._inbox.qsize())]
        return [*self._running.values(), *filling, *self._waiting, *filter(None, arrived)]
