"""Starts an arm, says what it takes and when it is ready, and lets its streams finish before it ends."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from engines.errors import UserError
from engines.onnx_files import DECODER
from serve.arm.allocator import keep_memory_flat
from serve.arm.app import build_app
from serve.arm.arm import Arm, Settings
from serve.arm.media import Limits
from serve.arm.model import Model, load, one_at_a_time, read_manifest
from serve.listening import listening


def run(options: argparse.Namespace) -> None:
    """Serve until SIGTERM; UserError when the arm cannot start."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    logging.getLogger("serve.arm").setLevel(logging.INFO)
    keep_memory_flat()
    arm = Arm(_settings(options))
    config = http_config(arm)
    listener = _listen(options.host, options.port)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(Server(config, arm), arm, options, listener))


def http_config(arm: Arm) -> uvicorn.Config:
    """How uvicorn serves an arm."""
    return uvicorn.Config(
        build_app(arm),
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than the idle time of the usual proxies: they close first
    )


class Server(uvicorn.Server):
    """The first SIGTERM or SIGINT turns new requests away and waits for the others, the second does not."""

    def __init__(self, config: uvicorn.Config, arm: Arm) -> None:
        super().__init__(config)
        self._arm = arm

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called on a signal, between any two instructions: only flags are set."""
        self.force_exit = self._arm.draining
        self._arm.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        self.should_exit |= self._arm.draining and (self.force_exit or not self._arm.sequences)
        return await super().on_tick(counter)


async def _serve(server: Server, arm: Arm, options: argparse.Namespace, listener: socket.socket) -> None:
    """/health answers from the beginning, /ready and the rest once the self-test has passed."""
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        model = await asyncio.to_thread(_load, options, arm)
        tell(await asyncio.to_thread(model.self_test))
        arm.model = model
        host, port = listener.getsockname()[:2]
        tell(f"ready: {arm.settings.name} at http://{f'[{host}]' if ':' in host else host}:{port}")
        await serving
    finally:
        server.should_exit = True
        await serving
        arm.close()


def _load(options: argparse.Namespace, arm: Arm) -> Model:
    return load(
        options.artifact,
        arm.metrics,
        slots=arm.settings.slots,
        context=options.context,
        threads=options.threads,
        device=options.device if options.device == "cuda" else "cpu",
        tell=tell,
    )


def _settings(options: argparse.Namespace) -> Settings:
    if not options.artifact.is_dir():
        raise UserError(
            f"{options.artifact} is not a folder: expected a variant's, as `python -m build list` tells them"
        )
    onnx = (options.artifact / DECODER).is_file()
    if options.device not in ("auto", "cpu", *(() if onnx else ("cuda",))):
        raise UserError(
            f"device {options.device}: expected {'cpu; engines bring their GPU' if onnx else 'cpu or cuda'}"
        )
    if options.dtype != "auto":
        raise UserError(f"dtype {options.dtype}: an ONNX artifact has its own; use --dtype auto")
    for name in ("slots", "queue", "max_file_size", "timeout"):
        if (value := getattr(options, name)) <= 0:
            raise UserError(f"--{name.replace('_', '-')} is {value}: expected more than 0")
    folder = options.artifact.resolve()
    manifest = read_manifest(folder)
    # A published variant lies in its model's folder: all arms of a model go by one name.
    usual = folder.parent.name if manifest and manifest.variant else folder.name
    return Settings(
        name=options.model_name or usual,
        slots=1 if one_at_a_time(folder) else options.slots,
        queue=options.queue,
        seconds=options.timeout,
        api_key=_read_key(options.api_key_file),
        origins=tuple(options.allow_origin),
        variant=manifest.variant if manifest else None,
        digest=manifest.digest if manifest else None,
        limits=Limits(max_file_bytes=options.max_file_size, allow_private=options.allow_private_urls),
    )


def _read_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = path.read_text().strip()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not key:
        raise UserError(f"{path} is empty: expected the API key")
    return key


def _listen(host: str, port: int) -> socket.socket:
    with listening(host, port):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)


def tell(line: str) -> None:
    """Progress, for people."""
    print(line, file=sys.stderr, flush=True)
