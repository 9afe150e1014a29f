"""What is known of one request, from its first byte to its line in the log."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# Quotes inside a JSON string are escaped, so none of these can match inside generated text.
MODEL = re.compile(rb'"model":\s*"([^"\\]{1,256})"')
IDENTITY = re.compile(rb'"id":\s*"([^"\\]{1,256})"')
FINISH = re.compile(rb'"finish_reason":\s*"([a-z_]{1,64})"')
INPUT = re.compile(rb'"prompt_tokens":\s*(\d{1,12})')
OUTPUT = re.compile(rb'"completion_tokens":\s*(\d{1,12})')
REQUEST_ID = re.compile(rb"[!-~]{1,128}")  # what an arm takes as one, too
OVERLAP = 256  # bytes looked at again, when a piece ends within an event


CLIENTS_FAULT = ("client_closed", "client_error", "refused")


def counts_against_arm(status: int, error: str | None, fallback: str | None) -> bool:
    """Whether the assigned arm failed a request, even where another arm then answered it."""
    return (
        fallback is not None
        or status >= 500
        or status == 429  # its queue was full
        or (error is not None and error not in CLIENTS_FAULT)
    )


@dataclass(slots=True)
class Record:
    """Times are seconds of the monotonic clock. Filled in as the request goes."""

    started: float
    address: str
    method: bytes
    target: bytes
    experiment: str
    version: int  # of the policy
    assigned: str | None = None
    reason: str | None = None  # of the assignment: override, group, split
    key: bytes = b""
    served: str | None = None  # the arm that answered
    digest: str | None = None
    attempts: int = 0
    fallback: str | None = None  # why the assigned arm did not answer
    mirror: bool = False
    status: int = 0
    error: str | None = None
    request_id: bytes = b""  # that the client gave
    request_model: bytes | None = None
    response_model: bytes | None = None
    response_id: bytes | None = None
    finish_reason: bytes | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    first: float = 0.0  # piece of the answer's body
    last: float = 0.0
    ended: float = 0.0
    unread: bytes = field(default=b"", repr=False)  # the end of a piece that may go on in the next

    def request_piece(self, data: bytes) -> None:
        """Looks for the model in the first piece of a request's body."""
        if found := MODEL.search(data, 0, 4096):
            self.request_model = found[1]

    def answer_piece(self, data: bytes, now: float) -> None:
        """Looks for identity, finish reason and usage in a piece of an answer's body; keeps nothing of it."""
        self.last = now
        if not self.first:
            self.first = now
            if found := MODEL.search(data, 0, 4096):
                self.response_model = found[1]
            if found := IDENTITY.search(data, 0, 4096):
                self.response_id = found[1]
        if self.unread:
            data = self.unread + data
        self.unread = b"" if data.endswith(b"\n\n") else data[-OVERLAP:]
        if found := FINISH.search(data):
            self.finish_reason = found[1]
        if found := OUTPUT.search(data):
            self.output_tokens = int(found[1])
            if found := INPUT.search(data):
                self.input_tokens = int(found[1])

    @property
    def ttft(self) -> float | None:
        """Seconds to the first piece of the answer's body."""
        return self.first - self.started if self.first else None

    @property
    def itl(self) -> float | None:
        """Mean seconds between two tokens; None where the answer told no usage or came in one piece."""
        if self.output_tokens and self.output_tokens > 1 and self.last > self.first:
            return (self.last - self.first) / (self.output_tokens - 1)
        return None

    @property
    def e2e(self) -> float:
        """Seconds from the head of the request to the end of the answer."""
        return self.ended - self.started
