"""The store does each piece of work once, whole, and says why it does it again."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import FrozenInstanceError
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest

from build.code import ROOT
from build.store import Entry, Store, Work, link_or_copy, processor_name
from engines.artifact import MANIFEST, Manifest, damage


def work(name: str = "a", **changes: Any) -> Work:
    fields: dict[str, Any] = {
        "config": {"size": 1},
        "inputs": {"x": "sha256:1"},
        "code": write,
    }
    return Work(stage="test", name=name, packages=("numpy",), **(fields | changes))


def write(out: Path, scratch: Path) -> dict[str, Any]:
    (out / "folder").mkdir(parents=True)
    (out / "folder" / "file.txt").write_text("content")
    return {}


def refuse(out: Path, scratch: Path) -> dict[str, Any]:
    raise AssertionError("ran although it was in the store")


def test_second_time_is_a_hit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = store.do(work(), write), store.do(work(), refuse)
    assert (first.cached, second.cached) == (False, True)
    assert first.digest == second.digest
    assert (second.path / "folder" / "file.txt").read_text() == "content"


def test_the_manifest_says_what_was_done(tmp_path: Path) -> None:
    began = datetime.now(UTC).replace(microsecond=0)
    asked = work(variant="onnx-fp16")
    entry = Store(tmp_path).do(asked, lambda out, scratch: write(out, scratch) | {"source": {"commit": "c"}})
    manifest = Manifest.read(entry.path)
    assert manifest == entry.manifest
    assert (manifest.stage, manifest.name, manifest.variant, manifest.key) == (
        "test",
        "a",
        "onnx-fp16",
        asked.key,
    )
    assert (manifest.config, manifest.inputs, manifest.host) == (
        {"size": 1},
        {"x": "sha256:1"},
        gethostname(),
    )
    assert manifest.packages == {
        "numpy": version("numpy"),
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "device": platform.machine(),
    }
    assert manifest.source == {"commit": "c"}
    assert list(manifest.files) == ["folder/file.txt"]
    assert began <= datetime.fromisoformat(manifest.created) <= datetime.now(UTC)
    assert 0 <= manifest.seconds < 60
    assert entry.path == tmp_path / "test" / f"a-{asked.key.removeprefix('sha256:')[:16]}"
    assert {path.name for path in tmp_path.iterdir()} == {"locks", "test"}
    for thing in (asked, entry):
        with pytest.raises(FrozenInstanceError):
            thing.name = "b"


def test_each_thing_worth_telling_is_a_line(tmp_path: Path) -> None:
    told: list[str] = []
    store = Store(tmp_path, told.append)
    store.do(work(), write)
    store.do(work(), refuse)
    store.do(work(config={"size": 1, "more": None}), write)
    store.do(work(config={"size": 2}, inputs={}), write)
    assert told == [
        "test a: not built yet",
        "test a: cache hit",
        "test a: rebuilt: its key changed",
        "test a: rebuilt: input x changed; size 1 -> 2",
    ]


def test_who_waits_for_another_run_is_told(tmp_path: Path) -> None:
    waits, told = threading.Event(), list[str]()

    def say(line: str) -> None:
        told.append(line)
        waits.set()

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        second.start()
        assert waits.wait(60)
        return write(out, scratch)

    second = threading.Thread(target=Store(tmp_path, say).do, args=(work("a-b"), refuse))
    Store(tmp_path).do(work("a-b"), run)
    second.join(60)
    assert told == ["test a-b: another run is doing this, waiting for it", "test a-b: cache hit"]


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (
            "processor: 0\nmodel name\t: Chip: 3 GHz\nprocessor: 1\nmodel name\t: Small one\n",
            "Chip: 3 GHz, 2 cores",
        ),
        ("processor: 0\n", platform.machine()),
        (None, platform.machine()),
    ],
)
def test_a_processor_is_called_by_its_model(told: str | None, name: str, tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    if told is not None:
        file.write_text(told)
    assert processor_name(file) == name


def test_a_link_where_it_can_be_one_else_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_text("content")
    link_or_copy(source, tmp_path / "new" / "folder" / "link")
    link_or_copy(source, tmp_path / "new" / "folder" / "second")
    assert source.stat().st_nlink == 3

    def elsewhere(target: Path, source: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", elsewhere)
    link_or_copy(source, tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "content"
    assert source.stat().st_nlink == 3


def test_a_damaged_manifest_explains_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.do(work(), write).path / MANIFEST
    file.chmod(0o644)
    file.write_text("{")
    assert store.find(work(config={"size": 2})) == "not built yet"


def test_equal_work_in_another_store_has_the_same_digest(tmp_path: Path) -> None:
    one, other = Store(tmp_path / "1").do(work(), write), Store(tmp_path / "2").do(work(), write)
    assert one.digest == other.digest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"size": 2}}, "rebuilt: size 1 -> 2"),
        ({"inputs": {"x": "sha256:2"}}, "rebuilt: input x changed"),
        (
            {"code": damage},
            "rebuilt: its code changed",
        ),
        ({"packages": ("numpy", "pillow")}, "rebuilt: pillow None -> "),
        ({"measures": True}, "rebuilt: device "),
    ],
)
def test_a_miss_says_what_changed(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    store = Store(tmp_path)
    assert store.find(work()) == "not built yet"
    store.do(work(), write)
    store.do(work("a-longer-name"), write)
    found = store.find(
        Work(
            **{
                "stage": "test",
                "name": "a",
                "packages": ("numpy",),
                "config": {"size": 1},
                "inputs": {"x": "sha256:1"},
                "code": write,
            }
            | change
        )
    )
    assert isinstance(found, str)
    assert reason in found


def test_a_damaged_entry_is_built_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.do(work(), write).path / "folder" / "file.txt"
    file.chmod(0o644)
    file.write_text("cOntent")
    found = store.find(work())
    assert found == f"damaged: {file}: its sha256 is not the manifest's"
    assert not store.do(work(), write).cached
    assert file.read_text() == "content"


def test_a_failing_stage_leaves_no_entry_and_keeps_its_scratch(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fail(out: Path, scratch: Path) -> dict[str, Any]:
        out.mkdir()
        (out / "half.txt").write_text("half")
        (scratch / "layer0").write_text("done")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        store.do(work(), fail)
    assert store.find(work()) == "not built yet"

    def resume(out: Path, scratch: Path) -> dict[str, Any]:
        assert not out.exists()
        assert (scratch / "layer0").read_text() == "done"
        return write(out, scratch)

    done = store.do(work(), resume)
    assert done.digest == Store(tmp_path / "undisturbed").do(work(), write).digest
    assert [path.name for path in done.path.parent.iterdir()] == [done.path.name]


def _do_slowly(root: Path, log: Path) -> None:
    def run(out: Path, scratch: Path) -> dict[str, Any]:
        with log.open("a") as stream:
            stream.write("ran\n")
        time.sleep(0.3)
        return write(out, scratch)

    Store(root).do(work(), run)


def test_two_runs_at_once_do_the_work_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    runs = [context.Process(target=_do_slowly, args=(tmp_path / "store", tmp_path / "log")) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert [run.exitcode for run in runs] == [0, 0]
    assert (tmp_path / "log").read_text() == "ran\n"
    assert isinstance(Store(tmp_path / "store").find(work()), Entry)


def test_a_killed_run_releases_its_lock(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from build.store import Store\nfrom tests.test_store import work\n"
        "def run(out, scratch):\n    print('in', flush=True)\n    time.sleep(60)\n"
        "Store(Path(sys.argv[1])).do(work(), run)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"in\n"
    os.kill(run.pid, signal.SIGKILL)
    run.wait(10)
    run.stdout.close()
    assert not Store(tmp_path).do(work(), write).cached


def test_store_files_are_read_only(tmp_path: Path) -> None:
    entry = Store(tmp_path).do(work(), write)
    assert not (entry.path / "folder" / "file.txt").stat().st_mode & 0o222


def test_damage_names_every_kind(tmp_path: Path) -> None:
    entry = Store(tmp_path).do(work(), write)
    (entry.path / "stray").write_text("")
    manifest = Manifest.read(entry.path)
    assert damage(entry.path, manifest) == [f"{entry.path / 'stray'}: not in the manifest"]
    (entry.path / "stray").unlink()
    (entry.path / "folder" / "file.txt").unlink()
    assert damage(entry.path, manifest) == [f"{entry.path / 'folder' / 'file.txt'}: missing"]
    assert (entry.path / MANIFEST).is_file()
