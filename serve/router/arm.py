"""An arm as the router sees it: where it is, whether it may be asked, and its idle connections."""

from __future__ import annotations

from pathlib import Path

from engines.artifact import Manifest
from engines.errors import UserError
from serve.router import policy
from serve.router.breaker import Breaker
from serve.router.messages import HOP_BY_HOP
from serve.router.upstream import Upstream


class Arm:
    """Kept, with its connections and its record, while its part of the policy stays the same."""

    def __init__(self, name: str, config: policy.Arm, breaker: policy.Breaker) -> None:
        if not config.url:
            raise UserError(f"arm {name} has an artifact but no url; start it and name its url")
        self.name = name
        self.config = config
        self.digest = config.digest or (
            Manifest.read(Path(config.artifact)).digest if config.artifact else None
        )
        self.breaker = Breaker(breaker.failures, breaker.open_s)
        self.healthy = True  # until a check says otherwise
        self.in_flight = 0
        self.idle: list[Upstream] = []
        self.host, self.port = config.address
        self.host_line = b"host: %b\r\n" % config.url.removeprefix("http://").encode()
        told = f"x-ab-arm: {name}\r\n" + (f"x-artifact-digest: {self.digest}\r\n" if self.digest else "")
        self.response_lines = told.encode()
        told_names = (line.partition(b":")[0] for line in self.response_lines.splitlines())
        self.dropped = HOP_BY_HOP.union(told_names)  # of an answer's headers

    def refusal(self, pressed: bool = False) -> str | None:
        """Why it may not be asked now; or None, and then the breaker has admitted one request.

        pressed: no other arm is left, so a trial under way is not waited for.
        """
        if not self.healthy:
            return "unhealthy"
        if self.in_flight >= self.config.max_requests:
            return "overloaded"
        return None if self.breaker.admit(pressed) else "breaker_open"

    def retire(self) -> None:
        """No more requests will come; those in flight finish on their connections."""
        while self.idle:
            self.idle.pop().close()
