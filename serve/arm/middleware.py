"""Around every request: its id, the key, the limits of its body, one line of log, one count."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import time
import traceback
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.arm.arm import Arm
from serve.arm.body import limited
from serve.arm.errors import ApiError
from serve.arm.page import FILES

LOG = logging.getLogger("serve.arm")
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
# For those who keep it alive, who have no key, and for the page that asks its reader for one.
OPEN = {"/health", "/ready", "/metrics", *FILES}
LEFT = 499  # nginx's status for a client that did not wait


class Context:
    """Outermost of the application: what it does not answer here goes on to the routes."""

    def __init__(self, app: ASGIApp, arm: Arm) -> None:
        self._app, self._arm = app, arm

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        facts: dict[str, Any] = {"http.response.status_code": LEFT}
        scope["facts"] = facts

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["http.response.status_code"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        start = time.perf_counter()
        try:
            self._check_key(scope["path"], headers)
            with limited(self._arm, receive) as counting:
                await self._app(scope, counting, tell)
        except ClientDisconnect:
            pass  # in the middle of its own request
        except ApiError as error:
            await respond(error, tell)
        except Exception as error:
            if facts["http.response.status_code"] != LEFT:
                raise  # the response has begun: all that is left is to break it off
            traceback.print_exception(error)
            await respond(ApiError(500, f"an error of ours: tell us the request id {request_id}"), tell)
        finally:
            self._note(scope, facts, request_id, time.perf_counter() - start)

    def _check_key(self, path: str, headers: Headers) -> None:
        key = self._arm.settings.api_key
        found = headers.get("authorization", "").removeprefix("Bearer ")
        if key and path not in OPEN and not hmac.compare_digest(found.encode(), key.encode()):
            message = "the API key is missing or wrong: send it as `Authorization: Bearer KEY`"
            raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def _note(self, scope: Scope, facts: dict[str, Any], request_id: str, seconds: float) -> None:
        """Names are OpenTelemetry's; nothing a user wrote or showed is among them."""
        route = getattr(scope.get("route"), "path", "none")
        self._arm.metrics.requests.labels(route, facts["http.response.status_code"]).inc()
        if route in OPEN:
            return
        line = {
            "http.request.method": scope["method"],
            "http.route": route,
            "client.address": scope["client"][0] if scope.get("client") else None,
            "request_id": request_id,
            "seconds": round(seconds, 4),
        }
        LOG.info(json.dumps(line | facts))


async def respond(error: ApiError, send: Send) -> None:
    """The whole response to a request that failed before it was answered."""
    body = error.body.model_dump_json().encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
