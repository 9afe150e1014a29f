"""Damage, full disks, folders that cannot be written, small limits, wrong clocks, two at once: success, or
one line that says what is wrong, and nothing lost."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.process import apart
from build.__main__ import main
from build.publish import published, verify
from build.release.reference import Reference
from build.release.registry import Registry
from build.release.upload import Sessions, upload_blob
from build.store import Entry, Store
from engines.artifact import Manifest
from engines.errors import UserError, reason
from serve.router.disk import alone
from serve.router.log import Log
from serve.router.record import Record
from serve.router.versions import Versions, read_texts
from tests.conftest import ROOT
from tests.oci_registry import oci_registry
from tests.published import publish_variant
from tests.test_policy import SMALLEST
from tests.test_store import refuse, work, write

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@contextmanager
def disk(folder: Path, *options: str) -> Iterator[None]:
    """A small one; the test is skipped where nothing may be mounted."""
    folder.mkdir()
    mount(folder, "-t", "tmpfs", *options, "tmpfs")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mount(folder: Path, *words: str) -> None:
    done = subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted: {done.stderr.strip()}")


# Damage


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 9}', b"\xff\xfe"])
def test_a_damaged_manifest_is_built_again(content: bytes, tmp_path: Path) -> None:
    store = Store(tmp_path)
    entry = store.do(work(), write)
    (entry.path / "manifest.json").write_bytes(content)
    assert str(store.find(work())).startswith("damaged: ")
    assert store.find(work(config={"size": 2})) == "not built yet", "it explains nothing, and is in no way"
    assert store.do(work(), write).digest == entry.digest
    assert isinstance(store.find(work()), Entry)


def test_what_an_interrupted_download_left_is_checked_again(tmp_path: Path, registry: str) -> None:
    """After a power cut a file may have its name, and not its content."""
    artifact = publish_variant(tmp_path / "here", "a")
    to = f"oci://{registry}/damaged:v"
    assert main(["publish", str(artifact), "--to", to]) == 0
    with Registry(Reference.parse(to)) as client:
        found = client.manifest("v")
    assert found
    partial = tmp_path / "out" / f".pull-{hashlib.sha256(found[0]).hexdigest()[:16]}"
    partial.mkdir(parents=True)
    for layer in found[1]["layers"]:
        (partial / layer["digest"].removeprefix("sha256:")).write_bytes(b"")
    assert main(["pull", to, "--unsigned", "--out", str(tmp_path / "out")]) == 0
    (folder,) = published(tmp_path / "out")
    assert verify(folder) == []


def test_a_policy_that_changed_on_disk_is_not_put_in_force(tmp_path: Path) -> None:
    Versions(tmp_path).put(SMALLEST, "file", "file")
    assert Versions(tmp_path).text(1) == SMALLEST
    (tmp_path / "policies" / "000001.yaml").write_text(SMALLEST.replace("int4: 10, fp16: 90", ""))
    with pytest.raises(UserError, match=r"000001\.yaml is damaged"):
        Versions(tmp_path).text(1)


# Two at once


def test_an_upload_that_was_cut_off_goes_on_in_its_own_repository_only(tmp_path: Path, registry: str) -> None:
    artifact = publish_variant(tmp_path, "a", seed=4)
    data = artifact / "decoder.onnx.data"
    digest = f"sha256:{hashlib.sha256(data.read_bytes()).hexdigest()}"

    def lost() -> None:
        raise UserError("killed")

    with Registry(Reference.parse(f"oci://{registry}/first")) as client:
        sessions = Sessions(artifact.with_name(".a.uploads.json"))
        with pytest.raises(UserError, match="killed"):
            upload_blob(
                client, digest, data, sessions, lambda _, done: done and lost(), chunk=100_000
            )  # as a kill after the first chunk would
    assert artifact.with_name(".a.uploads.json").is_file()
    for name in ("second", "first"):
        assert main(["publish", str(artifact), "--to", f"oci://{registry}/{name}"]) == 0
        with Registry(Reference.parse(f"oci://{registry}/{name}")) as client:
            assert client.has_blob(digest)
    assert not artifact.with_name(".a.uploads.json").exists()


def pull(reference: str, out: Path) -> None:
    assert main(["pull", reference, "--unsigned", "--out", str(out)]) == 0


def test_two_that_pull_the_same_take_turns(tmp_path: Path, registry: str) -> None:
    artifact = publish_variant(tmp_path / "here", "a", seed=5)
    to = f"oci://{registry}/two:v"
    assert main(["publish", str(artifact), "--to", to]) == 0
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"tests.{__name__}"])
    runs = [context.Process(target=pull, args=(to, tmp_path / "out")) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0, 0]
    (folder,) = published(tmp_path / "out")
    assert verify(folder) == []
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["qwen3-vl-micro"]


def test_a_state_is_one_routers(tmp_path: Path) -> None:
    state, told = tmp_path / "state", "is the state of a router that runs"
    with alone(state), pytest.raises(UserError, match=told), alone(state):
        pass
    with alone(state):  # nothing is left that would keep the next one out
        pass


def test_who_only_reads_a_history_does_not_mend_it(tmp_path: Path) -> None:
    """The line that is being written by a router looks cut off."""
    Versions(tmp_path).put(SMALLEST, "file", "file")
    with (tmp_path / "audit.jsonl").open("a") as audit:
        audit.write('{"version": 2, ')
        audit.flush()
        before = (tmp_path / "audit.jsonl").read_bytes()
        assert read_texts(tmp_path) == {1: SMALLEST}
        assert (tmp_path / "audit.jsonl").read_bytes() == before


# Full disks and folders that cannot be written


def test_a_full_disk_stops_a_build(tmp_path: Path, refused: Refused) -> None:
    with disk(tmp_path / "disk", "-o", "size=1m"):
        line = refused("all", "--out", tmp_path / "disk" / "out")
        assert "No space left on device; nothing already built was lost" in line


def test_a_full_disk_leaves_the_published_variant(tmp_path: Path, registry: str, refused: Refused) -> None:
    older, newer = (
        publish_variant(tmp_path / name, "a", seed=i) for i, name in enumerate(("older", "newer"))
    )
    to = f"oci://{registry}/full:v"
    assert main(["publish", str(newer), "--to", to]) == 0
    with disk(tmp_path / "disk", "-o", "size=1m"):
        there = tmp_path / "disk" / "there"
        assert main(["publish", str(older), "--to", str(there)]) == 0
        (tmp_path / "disk" / "ballast").write_bytes(bytes(400_000))
        for words in (("publish", newer, "--to", there), ("pull", to, "--unsigned", "--out", there)):
            assert "No space left on device" in refused(*words)
            (folder,) = published(there)
            assert verify(folder) == []
            assert Manifest.read(folder).digest == Manifest.read(older).digest
        (tmp_path / "disk" / "ballast").unlink()
        pull(to, there)  # goes on with what came before
        (folder,) = published(there)
        assert Manifest.read(folder).digest == Manifest.read(newer).digest
        assert [path.name for path in there.iterdir()] == ["qwen3-vl-micro"]


def test_a_read_only_folder_is_read_and_not_written(tmp_path: Path, refused: Refused) -> None:
    with disk(tmp_path / "disk"):
        out = tmp_path / "disk" / "out"
        artifact = publish_variant(out, "a")
        mount(tmp_path / "disk", "-o", "remount,ro")
        for word in ("list", "verify"):
            assert main([word, "--out", str(out)]) == 0
        assert main(["publish", str(artifact), "--to", str(tmp_path / "there")]) == 0
        for words in (["all", "--out"], ["publish", artifact, "--to"]):
            assert "Read-only file system; nothing already built was lost" in refused(*words, out / "new")
        with alone(out):  # a router may stand on a state that nobody can change
            pass


# Limits


def python(script: str, *words: object, **limits: int) -> subprocess.CompletedProcess[str]:
    """A script under limits (RLIMIT_…), as `ulimit` sets them."""
    set_limits = "".join(
        f"resource.setrlimit(resource.RLIMIT_{name}, ({limits[name]},) * 2)\n" for name in limits
    )
    line = [sys.executable, "-c", f"import resource, runpy, sys\n{set_limits}{script}", *map(str, words)]
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        line, cwd=ROOT, env=os.environ | single, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("size", "line"),
    [
        (60, ["build", "list"]),
        (150, ["build", "list"]),
        (70, ["engines", "run", "bench/micro/checkpoint", "--prompt", "?"]),
    ],
)
def test_too_little_memory_is_one_clear_line(size: int, line: list[str]) -> None:
    """Ours; or OpenBLAS's, which ends the process itself."""
    run = "runpy.run_module(sys.argv.pop(1), run_name='__main__')"
    done = python(run, *line, AS=size * 1_000_000)
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 1, done.stderr
    assert told.startswith(("error: out of memory: close other programs", "OpenBLAS error: Memory")), (
        done.stderr
    )
    assert "Traceback" not in done.stderr


def take(size: int) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    return len(bytes(size))


def test_too_little_memory_for_a_process_of_a_build_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="out of memory: close other programs"):
        apart(take, 1 << 30)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"), True),
        (ImportError("libtorch.so: failed to map segment from shared object"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_memory_is_told_from_other_errors(error: Exception, told: bool) -> None:
    assert (reason(error) is not None) == told


@pytest.mark.parametrize("files", [8, 10, 12, 16])
def test_few_files_are_enough_or_told(files: int, tmp_path: Path) -> None:
    artifact = publish_variant(tmp_path / "here", "a")
    script = "runpy.run_module('build', run_name='__main__')"
    done = python(script, "publish", artifact, "--to", tmp_path / "there", NOFILE=files)
    if done.returncode:
        assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
        assert "Too many open files" in done.stderr
        assert "Traceback" not in done.stderr
        assert not published(tmp_path / "there")
    else:
        assert [verify(folder) for folder in published(tmp_path / "there")] == [[]]


@pytest.mark.parametrize("files", [8, 16, 63])
@pytest.mark.parametrize("line", [["arm", "nowhere"], ["router", "nowhere"], ["up", "nowhere"]])
def test_too_few_files_to_serve_are_told(files: int, line: list[str]) -> None:
    """Libraries that cannot open theirs abort, or leave tracebacks behind."""
    done = python("runpy.run_module('serve', run_name='__main__')", *line, NOFILE=files)
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [
            f"error: {files} files may be open at once, expected at least 64: raise the limit (ulimit -Hn, "
            "LimitNOFILE= in systemd)"
        ],
    )


# Clocks


def test_times_that_lie_ahead_lock_nobody_out(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.do(work(), write)
    for path in tmp_path.rglob("*"):
        os.utime(path, (4e9, 4e9))
    assert store.do(work(), refuse).cached
    assert not store.do(work(config={"size": 2}), write).cached


def test_a_log_follows_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router may start before its machine has learned what time it is."""
    path = tmp_path / "log"
    log = Log(path)
    for now in (1_000_000_000.0, 1_800_000_000.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        log.write(Record(time.monotonic(), "::1", b"GET", b"/", "e", 1))
    log.close()
    days = [json.loads(line)["timestamp"][:10] for line in path.read_text().splitlines()]
    assert days == ["2001-09-09", "2027-01-15"]


# Names


def test_a_name_that_is_no_text_is_refused_before_any_work(tmp_path: Path, refused: Refused) -> None:
    assert "is no UTF-8" in refused("all", "--out", tmp_path / os.fsdecode(b"caf\xe9"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", ["mein Modell ü", "模型", "Qwen3-VL_2B.v1"])
def test_a_model_in_any_script_is_published_and_pulled(model: str, tmp_path: Path, registry: str) -> None:
    artifact = publish_variant(tmp_path / "made", "a").parent.rename(tmp_path / model) / "a"
    to = f"oci://{registry}/names:{hashlib.sha256(model.encode()).hexdigest()}"
    assert main(["publish", str(artifact), "--to", to]) == 0
    pull(to, tmp_path / "out of here")
    (folder,) = published(tmp_path / "out of here")
    assert folder.parent.name == model
    assert verify(folder) == []


@pytest.mark.parametrize("model", [".hidden", "a\nb", "a:b", "-rf"])
def test_a_model_that_nobody_could_pull_is_not_published(
    model: str, tmp_path: Path, registry: str, refused: Refused
) -> None:
    artifact = publish_variant(tmp_path / "made", "a").parent.rename(tmp_path / model) / "a"
    assert "expected letters" in refused("publish", artifact, "--to", f"oci://{registry}/names")
    with Registry(Reference.parse(f"oci://{registry}/names")) as client:
        assert client.manifest("a") is None
