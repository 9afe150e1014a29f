"""A policy's arms and its split on Ray Serve: arms on whatever nodes have room, an ingress on every node.

    serve run serve.deploy.ray:app policy=policy.yaml

An arm with an artifact is a process of ours inside a replica, which Ray starts again when it ends; an arm
with a url runs elsewhere. Requests get the same arms as from the router. Breakers, mirrors, rollouts and logs
are the router's: a policy with a mirror or a rollout is refused.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray.serve import Application, deployment
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from engines.artifact import Manifest
from engines.errors import UserError
from serve.compile.refusals import refuse, region_database
from serve.router.assignment import Assigner, user_of
from serve.router.head import NOT_PASSED
from serve.router.policy import Policy
from serve.router.reading import parse_policy

UNANSWERED = (aiohttp.ClientError, TimeoutError, OSError)


class ArmProcess:
    """One `python -m serve arm` on this replica's node."""

    def __init__(self, artifact: str) -> None:
        command = [sys.executable, "-m", "serve", "arm", artifact, "--port=0"]
        command += ["--host", ray.util.get_node_ip_address()]
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
        """Raises where the process has ended; Ray then starts another replica."""
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

    def reconfigure(self, config: dict[str, str]) -> None:
        """The policy, for the next request: Ray calls this at the start, and when only that has changed."""
        self._policy = checked(config["policy"])
        self._assign = Assigner(self._policy)
        self._digests = {name: _digest(self._policy, name) for name in self._policy.arms}

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        noted: dict[bytes, bytes] = {}
        for name, value in request.headers.raw:
            if name in self._assign.wanted:
                noted[name] = noted[name] + b", " + value if name in noted else value
        address = request.client.host if request.client else "0.0.0.0"
        try:
            user = user_of(body) if self._assign.reads_user else None
            assigned = self._assign(noted, address, user).arm
        except UserError as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)
        for arm in dict.fromkeys((assigned, *self._policy.fallback)):
            try:
                return await self._ask(arm, request, body)
            except UNANSWERED:
                continue
        return JSONResponse({"error": {"message": f"arm {assigned} does not answer"}}, 503)

    async def _ask(self, name: str, request: Request, body: bytes) -> Response:
        arm, self._client = self._policy.arms[name], self._client or aiohttp.ClientSession()
        url = await self._arms[name].url.remote() if name in self._arms else arm.url
        headers = [(key, value) for key, value in request.headers.items() if key.encode() not in NOT_PASSED]
        limit = aiohttp.ClientTimeout(
            sock_connect=arm.timeouts.connect_s, sock_read=arm.timeouts.first_byte_s
        )
        target = f"{url}{request.url.path}" + (f"?{request.url.query}" if request.url.query else "")
        answer = await self._client.request(request.method, target, headers=headers, data=body, timeout=limit)
        kept = {key: value for key, value in answer.headers.items() if key.lower().encode() not in NOT_PASSED}
        kept |= {"x-ab-arm": name} | (
            {"x-artifact-digest": digest} if (digest := self._digests[name]) else {}
        )
        return StreamingResponse(_pieces(answer), answer.status, kept)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A client that leaves ends the generator, and with it the arm's work."""
    try:
        async for piece in answer.content.iter_any():
            yield piece
    finally:
        answer.close()


def checked(text: str) -> Policy:
    """The policy, refused where Ray has no part for what it asks."""
    policy = parse_policy(text)
    refuse(
        "ray",
        (bool(policy.mirror), "a mirror", "leave it out, or run the router"),
        (bool(policy.rollout), "a rollout", "leave it out, or run the router"),
        region_database(policy),
    )
    return policy


def _digest(policy: Policy, name: str) -> str | None:
    arm = policy.arms[name]
    return arm.digest or (Manifest.read(Path(arm.artifact)).digest if arm.artifact else None)


def app(arguments: dict[str, str]) -> Application:
    """What `serve run` builds: `policy` is a file, `cpus` what an arm takes of its node, by default 1."""
    text = Path(arguments["policy"]).read_text()
    arms, cpus = {}, float(arguments.get("cpus", "1"))
    for name, arm in checked(text).arms.items():
        if arm.artifact:
            options = {"name": f"arm-{name}", "ray_actor_options": {"num_cpus": cpus}}
            arms[name] = deployment(ArmProcess).options(**options).bind(str(Path(arm.artifact).resolve()))
    ingress = deployment(Split).options(
        name="split",
        user_config={"policy": text},
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1024,
    )
    return ingress.bind(arms)
