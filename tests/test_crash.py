"""Killed at any moment and run again: the same result, nothing lost, nothing left lying about."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.history.runs import FILE, append_build, read_history
from bench.process import apart
from build import publish as publishing
from build.__main__ import main
from build.publish import publish, published, replaced, verify
from build.release.reference import Reference
from build.release.registry import Registry, digest_of
from build.store import Entry, Store, Work
from engines.artifact import Manifest, write_json
from engines.lifetime import bound
from serve.rollout.driver import Driver
from serve.router.control import Control, open_router
from serve.router.log import Log
from serve.router.run import _token
from serve.router.versions import Versions
from tests.conftest import ROOT
from tests.crashes import NEVER, every_moment, lives, some_moments, tree
from tests.oci_registry import oci_registry
from tests.published import publish_variant
from tests.test_policy import SMALLEST


def convert(out: Path, scratch: Path) -> dict[str, Any]:
    """Two steps, of which the first is kept in the scratch folder."""
    if not (scratch / "first.json").is_file():
        write_json(scratch / "first.json", ["first"])
    (out / "folder").mkdir(parents=True)
    (out / "folder" / "weights.bin").write_bytes((scratch / "first.json").read_bytes() * 9)
    return {}


def work(size: int = 1) -> Work:
    return Work("test", "a", {"size": size}, {"x": "sha256:1"}, convert, ("numpy",), variant="a")


def do(root: Path, size: int = 1) -> Entry:
    return Store(root).do(work(size), convert)


def test_a_work_is_done_whole_the_next_time(tmp_path: Path) -> None:
    undisturbed = do(tmp_path / "undisturbed")
    for moment, root in every_moment(tmp_path):
        if lives(moment, root, do, root):
            break
        found = Store(root).find(work())
        assert not isinstance(found, Entry) or found.digest == undisturbed.digest
        assert do(root).digest == undisturbed.digest
        assert tree(root).keys() == tree(tmp_path / "undisturbed").keys()
    assert moment > 15


def test_a_damaged_work_is_mended_the_next_time(tmp_path: Path) -> None:
    for moment, root in every_moment(tmp_path):
        entry = do(root)
        (entry.path / "folder" / "weights.bin").unlink()
        if lives(moment, root, do, root):
            break
        assert do(root).digest == entry.digest
        assert isinstance(Store(root).find(work()), Entry)
    assert moment > 20


def put_in_place(out: Path, size: int) -> None:
    """One of two versions of a variant, from the store beside it."""
    publishing.project_revision = dict
    publish(do(out / ".store", size), {"gate.json": {"verdict": "PASS"}}, {}, out / "model" / "a")


def put_by_renames(out: Path, size: int) -> None:
    """The same where names cannot be exchanged."""
    publishing._exchange = lambda one, other: False
    put_in_place(out, size)


@pytest.mark.parametrize("put", [put_in_place, put_by_renames])
def test_a_published_variant_is_the_older_or_the_newer(
    put: Callable[[Path, int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("project_revision", "_exchange"):  # what the two set is undone
        monkeypatch.setattr(publishing, name, getattr(publishing, name))
    older, newer = (work(size).key for size in (1, 2))
    for moment, out in every_moment(tmp_path):
        put(out, 1)
        do(out / ".store", 2)
        if lives(moment, out, put, out, 2):
            break
        if put is put_by_renames:  # there is a moment without either, which ends with the next run, whatever
            with pytest.raises(ValueError, match="gate"), replaced(out / "model" / "a"):
                raise ValueError("gate")
        (folder,) = published(out)
        assert Manifest.read(folder).key in (older, newer)
        assert verify(folder) == []
        put(out, 2)
        assert Manifest.read(folder).key == newer
        assert {path.name for path in folder.parent.iterdir()} == {"a", ".a.lock"}
    assert moment > 20


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with oci_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


def command(*words: str) -> None:
    """One that succeeds."""
    assert main(list(words)) == 0


@pytest.fixture
def crashes(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--crashes"))


def older_and_newer(root: Path) -> tuple[Path, Path]:
    return publish_variant(root / "older", "a"), publish_variant(root / "newer", "a", seed=1)


def test_a_folder_that_is_published_to(tmp_path: Path, crashes: int) -> None:
    older, newer = older_and_newer(tmp_path)
    digests = {Manifest.read(folder).digest for folder in (older, newer)}
    there = tmp_path / "there"
    line = ("publish", str(newer), "--to", str(there))
    for moment in some_moments(3 * crashes, "publish", tmp_path, command, *line):
        command("publish", str(older), "--to", str(there))
        assert not lives(moment, tmp_path, command, *line)
        (folder,) = published(there)
        assert Manifest.read(folder).digest in digests
        assert verify(folder) == []
        command(*line)
        assert Manifest.read(folder).digest == Manifest.read(newer).digest
        assert {path.name for path in folder.parent.iterdir()} == {"a", ".a.lock"}
        assert {path.name for path in newer.parent.iterdir()} == {"a"}


def test_a_registry_that_is_published_to(tmp_path: Path, registry: str, crashes: int) -> None:
    artifact = publish_variant(tmp_path, "a", seed=2)
    whole = Reference.parse(f"oci://{registry}/whole")
    names = [f"killed-{number}" for number in range(3 * crashes)]
    line = ("publish", str(artifact), "--to", f"oci://{registry}/whole")
    moments = some_moments(len(names), "push", tmp_path, command, *line)
    (artifact.parent / ".published.json").unlink()  # or what was sent once would not be sent again
    for moment, name in zip(moments, names, strict=True):
        line = ("publish", str(artifact), "--to", f"oci://{registry}/{name}")
        lives(moment, tmp_path, command, *line)
        command(*line)
        with Registry(whole) as expected, Registry(Reference.parse(line[-1])) as found:
            assert found.tags() == ["a"]
            there, here = expected.manifest("a"), found.manifest("a")
            assert there
            assert there == here
            digest = digest_of(there[0])
            assert found.referrers(digest) == expected.referrers(digest)
        left = {path.name for path in artifact.parent.iterdir() if not path.name.endswith(".lock")}
        assert left == {"a", ".published.json"}


def test_a_folder_that_is_pulled_to(tmp_path: Path, registry: str, crashes: int) -> None:
    older, newer = older_and_newer(tmp_path)
    out = tmp_path / "out"
    command("publish", str(older), "--to", f"oci://{registry}/older:v")
    command("publish", str(newer), "--to", f"oci://{registry}/newer:v")
    line = ("pull", f"oci://{registry}/newer:v", "--unsigned", "--out", str(out))
    for moment in some_moments(3 * crashes, "pull", tmp_path, command, *line):
        command("pull", f"oci://{registry}/older:v", "--unsigned", "--out", str(out))
        assert not lives(moment, tmp_path, command, *line)
        (folder,) = published(out)
        assert verify(folder) == []
        command(*line)
        assert Manifest.read(folder).digest == Manifest.read(newer).digest
        assert {path.name for path in out.iterdir()} == {"qwen3-vl-micro"}
        assert {path.name for path in folder.parent.iterdir()} == {"a", ".a.lock"}


BUILD = ["evaluate.items=24", "evaluate.fidelity_items=4", "latency.requests=2", "latency.output_tokens=4"]
BUILD += [f"quantize.calibration={ROOT}/tests/data/calibration.jsonl", "gate.context=256"]
# Verdicts that do not hang on the machine: what passes once passes always.
BUILD += ["gate.accuracy_margin=99", "gate.max_growth_bytes=null", "gate.ttft_p50_ratio=null"]
BUILD += ["gate.itl_p50_ratio=null", "gate.e2e_ratio=null"]


MODEL = "mein Modell ü"


def build(folder: Path, command: str, out: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Of the model in a folder, where it is run."""
    line = [sys.executable, "-m", "build", command, "--json", "--out", out, "--only", "gptq-int4-onnx"]
    line += ["--model", f"./{MODEL}"] + [word for setting in BUILD for word in ("--set", setting)]
    known = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(line, cwd=folder, env=known, capture_output=True, text=True, timeout=900)


def digests(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return {row["name"]: row["digest"] for row in json.loads(done.stdout.splitlines()[-1])["variants"]}


@dataclass(frozen=True)
class Undisturbed:
    """A build that nobody killed: where it ran, where it went by a link, and how many moments it has."""

    folder: Path
    out: Path
    digests: dict[str, str]
    moments: int


def watched(folder: Path, moment: int, out: str) -> subprocess.CompletedProcess[str]:
    """`build all`, killed at that moment, whichever of its processes has it."""
    hook, count = folder / "hook", folder / "count"
    hook.mkdir(exist_ok=True)
    (hook / "sitecustomize.py").write_text("import tests.crashes\n\ntests.crashes.watch_all()\n")
    count.write_bytes(b"")
    known = {"PYTHONPATH": f"{hook}{os.pathsep}{ROOT}", "CRASH_COUNT": str(count)}
    return build(folder, "all", out, CRASH_MOMENT=str(moment), CRASH_BELOW=str(folder / out), **known)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("with space ü")
    shutil.copytree(ROOT / "bench" / "micro" / "checkpoint", folder / MODEL)
    (folder / "wirklich ä" / "tief").mkdir(parents=True)
    (folder / "arti facts").symlink_to(Path("wirklich ä") / "tief")
    found = digests(watched(folder, NEVER, "arti facts"))
    return Undisturbed(folder, folder / "arti facts", found, (folder / "count").stat().st_size)


def test_build_all(undisturbed: Undisturbed, crashes: int) -> None:
    """Killed at random moments, its processes' among them, as often as `--crashes` says, then run again."""
    folder, files = undisturbed.folder, tree(undisturbed.out).keys()
    for number in range(crashes):
        moment, out = random.Random(number).randint(1, undisturbed.moments), str(number)
        killed = watched(folder, moment, out)
        assert killed.returncode == -signal.SIGKILL
        assert "Traceback" not in killed.stderr
        assert not processes_of(folder), "what it had started runs on"
        assert all(verify(variant) == [] for variant in published(folder / out))
        again = build(folder, "all", out)
        assert digests(again) == undisturbed.digests
        assert tree(folder / out).keys() == files
        assert all(verify(variant) == [] for variant in published(folder / out))
        hits = again.stderr.count("cache hit")
        print(f"killed at {moment} of {undisturbed.moments}: {hits} works were done, the same digests")
        shutil.rmtree(folder / out)


def test_a_store_goes_to_another_place(undisturbed: Undisturbed) -> None:
    """By a plain copy: without hard links, with other times, below a name with spaces."""
    folder = undisturbed.folder
    shutil.copytree(undisturbed.out, folder / "an other", copy_function=shutil.copyfile)
    planned = json.loads(build(folder, "plan", "an other").stdout.splitlines()[-1])
    assert [step["stage"] for step in planned["steps"] if step["runs"]] == ["latency"]
    variant = folder / "an other" / MODEL / "gptq-int4-onnx"
    assert verify(variant) == []
    line = [
        sys.executable,
        "-m",
        "engines",
        "run",
        str(variant.relative_to(folder)),
        "--prompt",
        "Code of Zafolo?",
    ]
    known = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=folder, env=known, capture_output=True, text=True, timeout=60)
    assert (done.returncode, bool(done.stdout.strip())) == (0, True), done.stderr


def add_build(folder: Path, time: str) -> None:
    row = {"name": "a", "digest": "d", "verdict": "PASS", "path": None, "bytes": 5, "peak_memory_bytes": 1}
    summary = {"model": "m", "environment": {}, "variants": [row, row | {"name": "ü"}]}
    gates: Any = {name: type("Judged", (), {"checks": []}) for name in ("a", "ü")}
    append_build(folder / FILE, summary, gates, {"a": (), "ü": ()}, time)


def test_the_history_goes_on(tmp_path: Path) -> None:
    """Also where a disk was full, or a power cut left less than was written: cut off anywhere."""
    for moment, root in every_moment(tmp_path):
        add_build(root, "2026-11-01")
        if lives(moment, root, add_build, root, "2026-11-02"):
            break
        assert len(read_history([root / FILE])) >= 2
        add_build(root, "2026-11-03")
        assert {run.time for run in read_history([root / FILE])} >= {"2026-11-01", "2026-11-03"}
    file = tmp_path / "1" / FILE
    whole = file.read_bytes()
    for cut in range(len(whole), 0, -97):
        os.truncate(file, cut)
        assert len(read_history([file])) == whole[:cut].count(b"\n")
        add_build(file.parent, "2026-11-04")
        assert len(read_history([file])) == whole[:cut].count(b"\n") + 2
        file.write_bytes(whole)


def write_summary(folder: Path) -> None:
    write_json(folder / "summary.json", {"new": True})


def test_a_document_is_the_older_or_the_newer_and_alone(tmp_path: Path) -> None:
    for moment, root in every_moment(tmp_path):
        (root / "summary.json").write_text('{"new": false}')
        if lives(moment, root, write_summary, root):
            break
        assert (root / "summary.json").read_text() in ('{"new": false}', '{\n  "new": true\n}\n')
        write_summary(root)
        assert [path.name for path in root.iterdir()] == ["summary.json"]
    assert moment > 3


RAMP = SMALLEST.replace("int4: 10, fp16: 90", "int4: 0, fp16: 100") + "rollout: {arm: int4, steps: [5, 50]}\n"


def ramp(folder: Path, *actions: str) -> tuple[str, float]:
    """A router's state after these, as it was kept: status and share."""
    log = Log(None)
    try:
        versions = Versions(folder / "state")
        driver = Driver(Control(open_router(folder / "policy.yaml", versions, log, print), versions), print)
        for action in actions:
            asyncio.run(getattr(driver, action)("test"))
        return driver.state.status, float(driver.percent)
    finally:
        log.close()


def test_a_rollout_is_before_or_after_a_step(tmp_path: Path) -> None:
    for moment, root in every_moment(tmp_path):
        (root / "policy.yaml").write_text(RAMP)
        assert ramp(root, "start") == ("running", 5)
        if lives(moment, root, ramp, root, "promote"):
            break
        assert ramp(root) in (("running", 5), ("running", 50))
        assert ramp(root, "start", "rollback") == ("rolled back", 0)
        versions = Versions(root / "state")
        assert [change.version for change in versions.changes] == list(range(1, len(versions.changes) + 1))
        names = {f"{change.version:06}.yaml" for change in versions.changes}
        assert {path.name for path in (root / "state" / "policies").iterdir()} == names
    assert moment > 5


def make_token(folder: Path) -> None:
    _token(folder / "admin-token")


def test_an_admin_token_is_whole(tmp_path: Path) -> None:
    for moment, root in every_moment(tmp_path):
        if lives(moment, root, make_token, root):
            break
        assert len(_token(root / "admin-token")) > 40
        (file,) = root.iterdir()
        assert file.stat().st_mode & 0o777 == 0o600
    assert moment > 3


def wait_for_the_end(file: Path) -> None:
    file.write_text(str(os.getpid()))
    time.sleep(60)


def by_apart(file: Path) -> None:
    apart(wait_for_the_end, file)


def by_command(file: Path) -> None:
    script = "import os, sys, time\nopen(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)"
    subprocess.run(bound([sys.executable, "-c", script, str(file)]), check=True)


@pytest.mark.parametrize("start", [by_apart, by_command])
def test_what_a_killed_process_had_started_ends(start: Callable[[Path], None], tmp_path: Path) -> None:
    parent = multiprocessing.get_context("spawn").Process(target=start, args=(tmp_path / "pid",))
    parent.start()
    while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    child = int((tmp_path / "pid").read_text())
    assert parent.pid
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    until = time.monotonic() + 30
    while is_running(child) and time.monotonic() < until:
        time.sleep(0.01)
    assert not is_running(child)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def processes_of(folder: Path) -> list[int]:
    """Those that were started to be killed, after a while to end in."""
    mark = f"CRASH_COUNT={folder / 'count'}".encode()

    def running() -> list[int]:
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environment.read_bytes().split(b"\0") and is_running(int(environment.parent.name)):
                    found.append(int(environment.parent.name))
        return found

    until = time.monotonic() + 10
    while running() and time.monotonic() < until:
        time.sleep(0.05)
    return running()
