"""The admin port: status, metrics, changes of the policy, the rollout, and a page that shows them.

Every request needs the token, but for the page itself, which knows nothing before it is given one.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from engines.errors import UserError
from serve.rollout.driver import Driver
from serve.router.control import ConflictError, Control
from serve.router.messages import RefusedError, answer, error_body
from serve.router.recent import Recent

PAGE = Path(__file__).resolve().parent / "admin.html"
PATHS = (
    "GET /, /status, /rollout, /policy or /metrics, PUT /policy, POST /rollback, "
    "or POST /rollout/ start, pause, promote or rollback"
)
MOST_BYTES = 1_000_000  # of a request
PATIENCE_S = 10.0


class Asked(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    by: str


class Admin:
    """Answers one request a connection."""

    def __init__(self, control: Control, rollout: Driver, recent: Recent, token: str) -> None:
        self._control = control
        self._rollout = rollout
        self._recent = recent
        self._token = token

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                writer.write(await self._respond(reader, str(writer.get_extra_info("peername")[0])))
                await writer.drain()
        except (OSError, TimeoutError):
            pass  # who asked has gone, or never finished asking
        finally:
            writer.close()

    async def _respond(self, reader: asyncio.StreamReader, by: str) -> bytes:
        try:
            asked = await _read(reader, by)
            if (asked.method, asked.path) == ("GET", "/"):
                return answer(200, PAGE.read_bytes(), close=True, kind=b"text/html; charset=utf-8")
            if not hmac.compare_digest(asked.headers.get("authorization", ""), f"Bearer {self._token}"):
                raise RefusedError(401, "expected Authorization: Bearer TOKEN")
            return await self._dispatch(asked)
        except RefusedError as refused:
            return answer(refused.status, error_body(refused.status, str(refused)), close=True)
        except ConflictError as conflict:
            return answer(412, error_body(412, str(conflict)), close=True)
        except UserError as error:
            return answer(422, error_body(422, str(error)), close=True)
        except OSError as error:
            message = f"the change could not be kept on disk: {error.strerror}; the policy stays as it was"
            return answer(507, error_body(507, message), close=True)

    async def _dispatch(self, asked: Asked) -> bytes:
        control, router = self._control, self._control.router
        match asked.method, asked.path:
            case "GET", "/status":
                return _json(self.status())
            case "GET", "/policy":
                text = control.versions.text(router.live.version)
                return answer(200, text.encode(), close=True, kind=b"application/yaml")
            case "GET", "/metrics":
                live = router.live
                text = router.metrics.text(live.arms, live.version, router.log.dropped)
                text += self._rollout.metrics()
                return answer(200, text.encode(), close=True, kind=b"text/plain; version=0.0.4")
            case "GET", "/rollout":
                return _json(self._rollout.figures())
            case "POST", (
                "/rollout/start" | "/rollout/pause" | "/rollout/promote" | "/rollout/rollback"
            ) as path:
                return await self._ramp(path.removeprefix("/rollout/"), asked)
            case "PUT", "/policy":
                expected = asked.headers.get("if-match")
                change = await control.put(
                    _text(asked.body), "put", asked.by, _number(expected, "If-Match") if expected else None
                )
            case "POST", "/rollback":
                change = await control.go_back(_version(asked.body), asked.by)
            case _:
                raise RefusedError(404, f"expected {PATHS}")
        return _json(asdict(change))

    async def _ramp(self, action: str, asked: Asked) -> bytes:
        match action:
            case "start":
                await self._rollout.start(asked.by)
            case "pause":
                await self._rollout.pause(asked.by)
            case "promote":
                await self._rollout.promote(asked.by, _percent(asked.body))
            case _:
                await self._rollout.rollback(asked.by)
        return _json(self._rollout.figures())

    def status(self) -> dict[str, object]:
        """What is in force, and how the arms are."""
        live = self._control.router.live
        weights = live.policy.split.weights
        return {
            "version": live.version,
            "experiment": live.policy.experiment,
            "baseline": live.policy.baseline,
            "log_lines_lost": self._control.router.log.dropped,
            "arms": {
                arm.name: {
                    "url": arm.config.url,
                    "digest": arm.digest,
                    "weight": float(weights.get(arm.name, 0)),
                    "healthy": arm.healthy,
                    "breaker": arm.breaker.state,
                    "in_flight": arm.in_flight,
                    **self._control.router.metrics.totals(arm.name),
                    "latency_ms": self._recent.figures(arm.name),
                }
                for arm in live.arms.values()
            },
            "changes": [asdict(change) for change in self._control.versions.changes[-20:]],
        }


async def _read(reader: asyncio.StreamReader, by: str) -> Asked:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
        line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = line.split(" ")
        headers = {name.lower(): value.strip() for name, value in (field.split(":", 1) for field in fields)}
        length = int(headers.get("content-length", "0"))
    except (asyncio.LimitOverrunError, asyncio.IncompleteReadError, ValueError):
        raise RefusedError(400, "expected an HTTP/1.1 request") from None
    if "transfer-encoding" in headers or not 0 <= length <= MOST_BYTES:
        raise RefusedError(413, f"expected a Content-Length of at most {MOST_BYTES}")
    try:
        return Asked(method, path, headers, await reader.readexactly(length), by)
    except asyncio.IncompleteReadError:
        raise RefusedError(400, "the body is shorter than its Content-Length") from None


def _json(document: dict[str, Any]) -> bytes:
    return answer(200, json.dumps(document).encode(), close=True)


def _to(body: bytes, what: str) -> object:
    """The value of {"to": …}; None without a body."""
    if not body.strip():
        return None
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.keys() != {"to"}:
        raise RefusedError(400, f'expected no body, or {{"to": {what}}}')
    return document["to"]


def _version(body: bytes) -> int | None:
    to = _to(body, "VERSION")
    return None if to is None else _number(to, "to")


def _percent(body: bytes) -> Decimal | None:
    to = _to(body, "PERCENT")
    if isinstance(to, bool) or not isinstance(to, int | float | None):
        raise RefusedError(400, f"to is {to!r}, expected percent")
    return None if to is None else Decimal(str(to))


def _number(found: object, what: str) -> int:
    text = str(found).strip('"')
    if not re.fullmatch("[0-9]{1,18}", text):
        raise RefusedError(400, f"{what} is {found!r:.40}, expected a version's number")
    return int(text)


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise RefusedError(400, "expected a policy as YAML in UTF-8") from None
