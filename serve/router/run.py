"""The router as a process: its two ports, its signals, its end."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from engines.errors import UserError
from serve.listening import listening
from serve.rollout.driver import Driver
from serve.router.admin import Admin
from serve.router.client import Client
from serve.router.control import Control, open_router
from serve.router.disk import alone, write_whole
from serve.router.health import check_forever
from serve.router.log import Log
from serve.router.otlp import Exporter
from serve.router.recent import Recent
from serve.router.router import Router
from serve.router.versions import Versions

BACKLOG = 4096


@dataclass(frozen=True)
class Options:
    """Of `python -m serve router`. Port 0 is any free one; the line on stderr tells which."""

    policy: Path
    host: str
    port: int
    admin_host: str
    admin_port: int
    admin_token_file: Path
    state: Path
    log: Path | None
    log_stdout: bool
    otlp: str | None
    drain_s: float


@dataclass(frozen=True)
class Running:
    """A router that takes requests."""

    control: Control
    rollout: Driver
    port: int
    admin_port: int


def run(options: Options) -> None:
    """Serves until SIGTERM or SIGINT, then lets streams finish for `drain_s`. SIGHUP reads the file again."""
    uvloop.run(_until_told(options))


async def _until_told(options: Options) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    async with serving(options) as running:
        reloads: set[asyncio.Task[None]] = set()  # the loop itself holds its tasks weakly
        loop.add_signal_handler(
            signal.SIGHUP,
            lambda: reloads.add(loop.create_task(_reload(running.control, options.policy))),
        )
        gc.collect()
        gc.freeze()  # what start-up made stays; collections look at requests only
        _tell(
            f"ready: router at http://{options.host}:{running.port}, admin at "
            f"http://{options.admin_host}:{running.admin_port}, "
            f"policy version {running.control.router.live.version}"
        )
        _tell_room(running.control.router)
        await stop.wait()


@asynccontextmanager
async def serving(options: Options) -> AsyncIterator[Running]:
    """A router with both ports open; at the end it takes no more and drains."""
    loop = asyncio.get_running_loop()
    with ExitStack() as closing:
        closing.enter_context(alone(options.state))
        versions, token = Versions(options.state), _token(options.admin_token_file)
        exporter = Exporter(options.otlp) if options.otlp else None
        if exporter:
            closing.callback(exporter.close)
        log = Log(options.log, stdout=options.log_stdout)
        closing.callback(log.close)
        router = open_router(options.policy, versions, log, _tell)
        router.room = _room()
        control = Control(router, versions)
        rollout = Driver(control, _tell)
        recent = Recent()
        router.observers += [rollout.observe, recent.observe]
        if exporter:
            router.observers.append(exporter.write)
        with listening(options.host, options.port):
            traffic = await loop.create_server(
                lambda: Client(router), options.host, options.port, backlog=BACKLOG
            )
        closing.callback(traffic.close)  # a loop does not end while a port is open
        with listening(options.admin_host, options.admin_port, "--admin-port"):
            admin = await asyncio.start_server(
                Admin(control, rollout, recent, token), options.admin_host, options.admin_port
            )
        closing.callback(admin.close)
        forever = (router.sweep(), check_forever(router, _tell), rollout.watch())
        tasks = [loop.create_task(work) for work in forever]
        try:
            yield Running(
                control, rollout, traffic.sockets[0].getsockname()[1], admin.sockets[0].getsockname()[1]
            )
        finally:
            traffic.close()
            admin.close()
            await router.drain(options.drain_s)
            for task in tasks:
                task.cancel()


def _room() -> int:
    """Clients that there are files for: two each, a tenth for all the rest. More would cost arms theirs."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft * 9 // 20


def _tell_room(router: Router) -> None:
    wanted = router.live.policy.limits.connections
    if router.room < wanted:
        _tell(
            f"this process may open files for {router.room} clients at once, limits.connections is {wanted}: "
            f"raise the limit on open files (ulimit -Hn, LimitNOFILE= in systemd) above {wanted * 20 // 9}, "
            "or lower limits.connections"
        )


async def _reload(control: Control, file: Path) -> None:
    try:
        change = await control.put(file.read_text(), "file", "file")
        _tell(f"policy version {change.version} is in force")
    except (UserError, OSError, UnicodeDecodeError) as error:
        _tell(f"{file} is refused: {error}; version {control.router.live.version} stays in force")


def _token(file: Path) -> str:
    """What the admin port asks for; a new one is made where there is no file."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.new")
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT, 0o600))  # nobody else's before there is a token in it
        write_whole(new, f"{secrets.token_urlsafe(32)}\n".encode(), "wb")
        new.replace(file)
    token = file.read_text().strip()
    if not token:
        raise UserError(
            f"{file} is empty: expected the admin token; write one, or remove the file to get a new one"
        )
    return token


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
