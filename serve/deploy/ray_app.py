"""What runs on Ray Serve: arms on whatever nodes have room, and a split that gives each the router's share.

The configuration that names this module is written by `python -m serve compile POLICY --to ray`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import ray
from ray.serve import Application, deployment
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from engines.errors import UserError
from serve.router.assignment import Assigner, user_of
from serve.router.head import NOT_PASSED
from serve.router.policy import Policy

UNANSWERED = (aiohttp.ClientError, OSError, TimeoutError, ray.exceptions.RayError)
OWN = ("accept", "accept-encoding", "user-agent")  # what aiohttp would add to a client's headers


class ArmProcess:
    """One `python -m serve arm` on this replica's node, which Ray starts again when it ends."""

    def __init__(self, artifact: str) -> None:
        host = ray.util.get_node_ip_address()
        command = [sys.executable, "-m", "serve", "arm", artifact, "--port=0", "--host", host]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr
        told: list[str] = []
        for line in self._process.stderr:
            told.append(line.strip())
            if line.startswith("ready: "):
                break
        else:
            raise RuntimeError(f"the arm of {artifact} ended before it was ready: {' / '.join(told[-3:])}")
        self._url = told[-1].rpartition(" at ")[2]
        threading.Thread(target=self._process.stderr.read, daemon=True).start()  # or its pipe fills up

    def url(self) -> str:
        """Where this replica answers."""
        return self._url

    def check_health(self) -> None:
        """Raises where the process has ended."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the arm ended with code {self._process.returncode}")

    def __del__(self) -> None:
        self._process.terminate()
        self._process.wait()


class Split:
    """Passes each request to its arm, and the answer back piece by piece."""

    def __init__(self, arms: dict[str, Any]) -> None:
        """`arms` are handles of those that Ray keeps."""
        self._arms = arms
        self._client: aiohttp.ClientSession | None = None

    def reconfigure(self, policy: dict[str, Any]) -> None:
        """The policy for the next request: Ray calls this at the start, and when only that has changed."""
        self._policy = Policy.model_validate(policy)
        self._assign = Assigner(self._policy)

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        noted: dict[bytes, bytes] = {}
        for field, value in request.headers.raw:
            if field in self._assign.wanted:
                noted[field] = noted[field] + b", " + value if field in noted else value
        address = request.client.host if request.client else "0.0.0.0"
        try:
            user = user_of(body) if self._assign.reads_user else None
            assigned = self._assign(noted, address, user).arm
        except UserError as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)
        turns = list(dict.fromkeys((assigned, *self._policy.fallback)))
        for name in turns:
            try:
                answer = await self._ask(name, request, body)
            except UNANSWERED:
                continue
            if answer.status == 503 and name != turns[-1]:  # it starts, stops or holds all it can
                answer.close()
                continue
            return self._passed_on(name, answer)
        return JSONResponse({"error": {"message": f"arm {assigned} does not answer"}}, 503)

    async def _ask(self, name: str, request: Request, body: bytes) -> aiohttp.ClientResponse:
        arm, client = self._policy.arms[name], self._open()
        timeouts, url = arm.timeouts, arm.url
        if name in self._arms:  # Ray chooses among its replicas
            url = await asyncio.wait_for(self._arms[name].url.remote(), timeouts.connect_s)
        return await client.request(
            request.method,
            f"{url}{request.url.path}" + (f"?{request.url.query}" if request.url.query else ""),
            headers=[field for field in request.headers.items() if field[0].encode() not in NOT_PASSED],
            data=body or None,
            timeout=aiohttp.ClientTimeout(sock_connect=timeouts.connect_s, sock_read=timeouts.first_byte_s),
            allow_redirects=False,
        )

    def _passed_on(self, name: str, answer: aiohttp.ClientResponse) -> Response:
        kept = {key: value for key, value in answer.headers.items() if key.lower().encode() not in NOT_PASSED}
        kept["x-ab-arm"] = name
        if digest := self._policy.arms[name].digest:
            kept["x-artifact-digest"] = digest
        return StreamingResponse(_pieces(answer), answer.status, kept)

    def _open(self) -> aiohttp.ClientSession:
        """The arms' client, made where its event loop runs. It keeps nothing of a user's for the next."""
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=OWN,
            )
        return self._client


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A client that leaves ends the generator, and with it the arm's work."""
    try:
        async for piece in answer.content.iter_any():
            yield piece
    finally:
        answer.close()


def app(arguments: dict[str, Any]) -> Application:
    """What Ray builds: an arm for each artifact, by name, and the split."""
    arms = {
        name: deployment(ArmProcess).options(name=f"arm-{name}").bind(artifact)
        for name, artifact in arguments["arms"].items()
    }
    split = deployment(Split).options(name="split", ray_actor_options={"num_cpus": 0})
    return split.bind(arms)
