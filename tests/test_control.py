"""Changes of the policy: atomic, versioned, audited, and there again after a restart."""

from __future__ import annotations

import json
import resource
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from engines.errors import UserError
from serve.__main__ import main
from serve.router.control import open_router
from serve.router.disk import write_whole
from serve.router.log import Log
from serve.router.record import Record
from serve.router.versions import Versions, read_texts
from tests.scripted_arm import Answer, answers, ask, policy_text, request, routing, scripted_arm
from tests.test_policy import SMALLEST
from tests.test_router import run


async def admin(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
    return await ask(port, request(body, method=method, target=path, Authorization="Bearer token", **headers))


def test_put_roll_back_and_restart(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a, scripted_arm(answers(b"b")) as b:
            texts = [policy_text(a, b, weight_a=weight) for weight in (0, 100, 50)]
            async with routing(tmp_path, texts[0]) as router:
                port = router.admin_port
                assert (await ask(router.port, request())).body == b"b"
                assert (await admin(port, "PUT", "/policy", texts[1].encode())).status == 200
                assert (await ask(router.port, request())).body == b"a"
                assert (await admin(port, "PUT", "/policy", b"", If_Match="1")).status == 412
                assert (await admin(port, "PUT", "/policy", texts[2].encode(), If_Match='"2"')).status == 200
                assert (await admin(port, "POST", "/rollback", b'{"to": 1}')).status == 200
                assert (await ask(router.port, request())).body == b"b"
                assert (await admin(port, "GET", "/policy")).body.decode() == texts[0]
                assert (await admin(port, "POST", "/rollback", b'{"to": 9}')).status == 422
                assert (await admin(port, "POST", "/rollback", b'{"two": 9}')).status == 400
                assert (await admin(port, "POST", "/rollback")).status == 422, "nothing before the first"
                assert (await admin(port, "PUT", "/policy", texts[1].encode())).status == 200
            # The file is as it was at the start: the last version is in force, not the file.
            async with routing(tmp_path, texts[0]) as router:
                assert router.control.router.live.version == 5
                assert (await ask(router.port, request())).body == b"a"
                assert (await admin(router.admin_port, "POST", "/rollback")).status == 200
                assert (await admin(router.admin_port, "GET", "/policy")).body.decode() == texts[0]
            # An edited file is a new version.
            async with routing(tmp_path, texts[0] + "retries: 0\n") as router:
                assert router.control.router.live.version == 7
            # A broken one is kept out.
            async with routing(tmp_path, "broken: [") as router:
                assert router.control.router.live.version == 7
                assert (await ask(router.port, request())).status == 200

    run(test())
    lines = [json.loads(line) for line in (tmp_path / "state" / "audit.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines] == ["file", "put", "put", "rollback", "put", "rollback", "file"]
    assert [line["version"] for line in lines] == list(range(1, 8))
    assert lines[1]["by"] == "127.0.0.1"
    assert read_texts(tmp_path / "state")[7].endswith("retries: 0\n")


@pytest.mark.parametrize(
    "change",
    [
        ("b: 0", "b: 1"),
        ("sha256:aa", "sha256:aa\n"),
        ("experiment: e", "experiment: e\nregion: {database: none.mmdb}"),
    ],
)
def test_a_refused_change_changes_nothing(change: tuple[str, str], tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a:
            text = policy_text(a)
            async with routing(tmp_path, text) as router:
                answer = await admin(router.admin_port, "PUT", "/policy", text.replace(*change).encode())
                assert answer.status == 422
                assert json.loads(answer.body)["error"]["message"]
                assert router.control.router.live.version == 1
                assert len(router.control.versions.changes) == 1

    run(test())


@pytest.mark.parametrize("to", ['"²"', '"' + "9" * 5000 + '"', "[" * 100_000, "NaN", "true"])
def test_what_is_no_version_is_answered(to: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a, routing(tmp_path, policy_text(a)) as router:
            answer = await admin(router.admin_port, "POST", "/rollback", f'{{"to": {to}}}'.encode())
            assert answer.status == 400
            assert len(json.loads(answer.body)["error"]["message"]) < 100

    run(test())


def test_a_full_disk_keeps_the_old_policy(tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a:
            text = policy_text(a)
            async with routing(tmp_path, text) as router:
                audit = tmp_path / "state" / "audit.jsonl"
                audit.rename(tmp_path / "kept")
                audit.symlink_to("/dev/full")
                answer = await admin(router.admin_port, "PUT", "/policy", (text + "retries: 0\n").encode())
                assert answer.status == 507
                assert router.control.router.live.version == 1
                assert (await ask(router.port, request())).status == 200

    run(test())


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"GET /status HTTP/1.1\r\nx: " + b"y" * 100_000 + b"\r\n\r\n", 400),
        (b"PUT /policy HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n", 413),
        (b"PUT /policy HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", 413),
        (b"PUT /policy HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 413),
        (b"GET /status HTTP/1.1\r\n\r\n", 401),
        (b"GET /status HTTP/1.1\r\nauthorization: Bearer \r\n\r\n", 401),
        (request(b"", method="GET", target="/nothing", Authorization="Bearer token"), 404),
        (request(b"\xff", method="PUT", target="/policy", Authorization="Bearer token"), 400),
    ],
)
def test_the_admin_port_refuses(data: bytes, status: int, tmp_path: Path) -> None:
    async def test() -> None:
        async with scripted_arm(answers(b"a")) as a, routing(tmp_path, policy_text(a)) as router:
            assert (await ask(router.admin_port, data)).status == status

    run(test())


def test_a_line_that_a_crash_cut_never_was(tmp_path: Path) -> None:
    versions = Versions(tmp_path)
    versions.put(SMALLEST, "file", "file")
    versions.put(SMALLEST + "retries: 0\n", "put", "x")
    audit = tmp_path / "audit.jsonl"
    audit.write_bytes(audit.read_bytes()[:-20])
    assert [change.version for change in Versions(tmp_path).changes] == [1]
    assert Versions(tmp_path).put(SMALLEST, "put", "x").version == 2
    assert len(Versions(tmp_path).changes) == 2


def test_a_damaged_history_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="damaged"):
        Versions(tmp_path)


def test_without_any_usable_policy_nothing_starts(tmp_path: Path) -> None:
    log = Log(None)
    try:
        (tmp_path / "p.yaml").write_text("broken: [")
        for file in (tmp_path / "none.yaml", tmp_path / "p.yaml"):
            with pytest.raises(UserError):
                open_router(file, Versions(tmp_path / "state"), log, print)
    finally:
        log.close()


def test_the_log_rotates(tmp_path: Path) -> None:
    log = Log(tmp_path / "log", rotate_bytes=1, keep=2)
    for number in range(5):
        record = Record(float(number), "::1", b"GET", b"/?secret=1", "e", 1)
        log.write(record)
        log._flush()
    log.close()
    kept = [json.loads((tmp_path / name).read_text()) for name in ("log", "log.1", "log.2")]
    assert [line["timestamp"] for line in kept] == sorted((line["timestamp"] for line in kept), reverse=True)
    assert {path.name for path in tmp_path.iterdir()} == {"log", "log.1", "log.2"}
    assert "secret" not in str(kept), "a query may hold what is none of the log's business"


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--state={file}", "expected a folder"),
        ("--log={file}/log", "cannot be opened: Not a directory"),
        ("--port=99999", "expected a port"),
        ("--admin-port=http", "expected a port"),
    ],
)
def test_a_wrong_option_ends_the_router_with_one_clear_line(
    flag: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(SMALLEST)
    line = ["router", str(file), f"--state={tmp_path}/state", "--port=0", "--admin-port=0"]
    with suppress(SystemExit):  # usage is argparse's
        assert main([*line, flag.format(file=file)]) == 1
    assert told in capsys.readouterr().err.splitlines()[-1]


def test_an_outage_of_the_log_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    log = Log(path)
    for full in (True, True, False, False):
        path.unlink(missing_ok=True)
        if full:
            path.symlink_to("/dev/full")
        log.write(Record(1.0, "::1", b"GET", b"/", "e", 1))
        while log._waiting or log._failing != full:
            time.sleep(0.01)
    log.close()
    assert [said.split(";")[0] for said in capsys.readouterr().err.splitlines()] == [
        "the log cannot be written: No space left on device",
        "the log is written again",
    ]


def test_a_disk_without_room_keeps_no_half_lines(tmp_path: Path) -> None:
    """The limit on a file's size stands for a full disk: the last write has room for a part only."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        write_whole(tmp_path / "lines", b"a" * 599 + b"\n", "ab")
        with pytest.raises(OSError, match="No space left"):
            write_whole(tmp_path / "lines", b"b" * 599 + b"\n", "ab")
        write_whole(tmp_path / "lines", b"c\n", "ab")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "lines").read_bytes() == b"a" * 599 + b"\nc\n"
