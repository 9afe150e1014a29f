"""The arms of a policy and its router, on one machine: started together, stopped together."""

from __future__ import annotations

import argparse
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from engines.errors import UserError
from engines.lifetime import bound
from serve.router.policy import Policy
from serve.router.reading import read_policy

STOP_S = 35.0  # for an arm to finish its streams
RESTART_S = 2.0  # before an arm that ended is started again


def up(options: argparse.Namespace) -> None:
    """Starts arms that have an artifact, waits until all are ready, then the router, until told to stop."""
    policy = read_policy(options.policy)
    commands = arm_commands(policy)
    stopping = threading.Event()
    stop_on_signals(stopping)
    with arms(commands, stopping), started(router_command(options), options.drain + 5) as router:
        while not stopping.wait(0.2):
            if router.poll() is not None:
                raise UserError(f"the router ended with code {router.returncode}; its reason is above")


def router_command(options: argparse.Namespace) -> list[str]:
    """The router, with the options it shares with `up`."""
    command = [sys.executable, "-m", "serve", "router", str(options.policy)]
    for name, value in vars(options).items():
        if name not in ("command", "policy", "select") and value is not None and value is not False:
            command += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return command


def arm_commands(policy: Policy) -> dict[str, list[str]]:
    """What to start for each arm with an artifact. Raises UserError where that is impossible here."""
    commands = {}
    for name, arm in policy.arms.items():
        if not arm.artifact:
            continue
        if not arm.url or arm.address[0] not in ("127.0.0.1", "localhost", "::1"):
            raise UserError(
                f"arm {name} has an artifact; give it a url on this machine, http://127.0.0.1:PORT"
            )
        if not Path(arm.artifact).is_dir():
            raise UserError(f"arm {name}: no artifact {arm.artifact}; expected the folder of a built variant")
        host, port = arm.address
        commands[name] = [
            *(sys.executable, "-m", "serve", "arm", arm.artifact),
            *("--host", host, "--port", str(port)),
        ]
    if not commands:
        raise UserError("no arm has an artifact; name its folder, or start the arms and use: serve router")
    return commands


@contextmanager
def arms(commands: Mapping[str, Sequence[str]], interrupted: threading.Event) -> Iterator[None]:
    """Every arm running and ready; one that ends later is started again.

    An arm is ready when it says so: a line on stderr that begins with `ready:`. Raises UserError when one
    ends before that. `interrupted` ends the wait for it.
    """
    stopping = threading.Event()  # after the router, which may have streams of theirs
    threads = []
    ready = {name: threading.Event() for name in commands}
    failed: list[str] = []
    for name, command in commands.items():
        arguments = (name, command, ready[name], failed, stopping)
        threads.append(threading.Thread(target=_keep_running, args=arguments, name=name))
    try:
        for thread in threads:
            thread.start()
        for event in ready.values():
            while not event.wait(0.1):
                if failed or interrupted.is_set():
                    break
            if failed:
                raise UserError(f"arm {failed[0]} ended before it was ready; its reason is above")
        yield
    finally:
        stopping.set()
        for thread in threads:
            thread.join()


def _keep_running(
    name: str, command: Sequence[str], ready: threading.Event, failed: list[str], stopping: threading.Event
) -> None:
    while not stopping.is_set():
        with started(command, STOP_S, subprocess.PIPE) as process:
            _relay(name, process, ready, stopping)
        if not ready.is_set() and not stopping.is_set():
            failed.append(name)
            return
        if not stopping.wait(RESTART_S):
            print(f"arm {name} ended; it is started again", file=sys.stderr, flush=True)


def _relay(
    name: str, process: subprocess.Popen[bytes], ready: threading.Event, stopping: threading.Event
) -> None:
    """Passes on what an arm says, until it ends or is to be stopped."""
    assert process.stderr
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while not stopping.is_set():
            if selector.select(0.2):
                line = process.stderr.readline().decode("utf-8", "replace")
                if not line:
                    return
                print(f"[{name}] {line}", end="", file=sys.stderr, flush=True)
                if line.startswith("ready:"):
                    ready.set()


@contextmanager
def started(
    command: Sequence[str], stop_s: float, stderr: int | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A program until the block ends; then it may take `stop_s` to end by itself. Killed when we are."""
    # In a session of its own: Ctrl-C reaches us alone, and the router drains before its arms end.
    process = subprocess.Popen(bound(command), stderr=stderr, start_new_session=True, bufsize=0)
    try:
        yield process
    finally:
        process.terminate()
        until = time.monotonic() + stop_s
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def stop_on_signals(stopping: threading.Event) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)
