"""``python -m build all`` as a user meets it: end to end, cached, killed, damaged, and given bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

from bench.verdict import Check
from build.cluster import Cluster, connected
from build.store import Store
from engines.artifact import Manifest
from engines.errors import UserError
from engines.ports import free_port
from tests.checkpoints import write_checkpoint
from tests.conftest import ROOT
from tests.live_up import running_up, wait_for
from tests.ray_cluster import raylet, two_nodes
from tests.s3_server import s3_server

# Small enough for a test; whether the verdict passes is not the point here, whether it is reached is.
SMALL = [
    "evaluate.items=40",
    "evaluate.shard_items=20",
    "evaluate.fidelity_items=8",
    "latency.requests=2",
    "latency.output_tokens=4",
    "quantize.calibration=tests/data/calibration.jsonl",
]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]
LINE = [sys.executable, "-m", "build"]
MEASURED = ["fp16", "onnx-fp16", "gptq-int4", "gptq-int4-onnx", "awq-int4", "awq-int4-onnx"]
ELSEWHERE = ["trt-fp16-sm89", "trt-gptq-int4-sm89", "trt-awq-int4-sm89"]  # on a GPU, which tests do not have
VARIANTS = MEASURED + ELSEWHERE
SHARDS = [f"evaluate gptq-int4-onnx-shard-{number}-of-2" for number in (1, 2)]
OWN = ("ray::IDLE", "ray::RuntimeEnvAgent")


def arguments(out: Path, *more: str) -> list[str]:
    return [*LINE, "all", "--out", str(out), "--json", *SETTINGS, *more]


def run(*line: str, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


def summary_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode in (0, 3, 4), done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def ids(file: Path) -> list[str]:
    return [json.loads(line)["id"] for line in file.read_text().splitlines()]


def digests(summary: dict[str, Any]) -> dict[str, str]:
    return {variant["name"]: variant["digest"] for variant in summary["variants"]}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def built(out: Path) -> dict[str, Any]:
    return summary_of(run(*arguments(out)))


def test_every_variant_gets_a_verdict_and_what_passed_is_published(built: dict[str, Any], out: Path) -> None:
    assert [variant["name"] for variant in built["variants"]] == VARIANTS
    assert json.loads((out / "qwen3-vl-micro" / "summary.json").read_text()) == built
    assert "<svg" in (out / "qwen3-vl-micro" / "report.html").read_text()
    lines = map(json.loads, (out / "qwen3-vl-micro" / "history.jsonl").read_text().splitlines())
    assert [line["variant"] for line in lines][: len(VARIANTS)] == VARIANTS
    assert built["peak_memory_bytes"] >= max(v["peak_memory_bytes"] or 0 for v in built["variants"])
    timed = {variant["name"] for variant in built["variants"] if variant["latency"] and variant["observed"]}
    assert timed == {"fp16", "onnx-fp16", "gptq-int4-onnx", "awq-int4-onnx"}
    for variant in built["variants"]:
        folder = out / "qwen3-vl-micro" / variant["name"]
        assert folder.exists() == (variant["verdict"] == "PASS"), variant
        assert variant["bytes"] > 0
        assert (variant["peak_memory_bytes"] is None) == (variant["name"] in ELSEWHERE)
        assert variant["checks"]
    fp16 = out / "qwen3-vl-micro" / "fp16"
    assert {path.name for path in (fp16 / "evidence").iterdir()} >= {
        "gate.json",
        "observations.jsonl",
        "commands.sh",
    }
    (items,) = (out / ".store" / "items").glob("*/items.jsonl")
    asked, answered = (ids(file) for file in (items, fp16 / "evidence" / "observations.jsonl"))
    assert len(asked) == 40
    assert answered == asked, "the shards' answers are in the order of the items"


def test_an_engine_for_an_absent_gpu_is_built_and_neither_measured_nor_published(
    built: dict[str, Any], out: Path
) -> None:
    for variant in built["variants"]:
        if variant["name"] in ELSEWHERE:
            assert variant["verdict"] == "UNMEASURED"
            verdicts = {check["metric"]: check["verdict"] for check in variant["checks"]}
            assert verdicts.pop("bytes") == "PASS"
            assert set(verdicts.values()) == {"UNMEASURED"}
            accuracy = next(check for check in variant["checks"] if check["metric"] == "accuracy")
            assert "no GPU of sm89 where this was built" in accuracy["reason"]
            assert f"python -m build all --recipe micro --only {variant['name']}" in accuracy["reason"]
            (folder,) = (out / ".store" / "tensorrt").glob(f"{variant['name']}-*")
            assert (folder / "decoder.engine").stat().st_size > 1e6
    assert built["verdict"] != "UNMEASURED"  # the exit code is the others'


def test_second_run_is_all_hits_with_the_same_digests(built: dict[str, Any], out: Path) -> None:
    done = run(*arguments(out))
    again = summary_of(done)
    assert all(variant["cached"] for variant in again["variants"])
    assert digests(again) == digests(built)
    assert "not built yet" not in done.stderr


def test_a_changed_setting_rebuilds_what_depends_on_it_and_says_why(built: dict[str, Any], out: Path) -> None:
    done = run(
        *LINE,
        "plan",
        "--out",
        str(out),
        "--json",
        "--set",
        "quantize.damping=0.02",
        *SETTINGS,
    )
    steps = {(step["stage"], step["name"]): step for step in json.loads(done.stdout)["steps"]}
    assert steps["quantize", "gptq-int4"]["reason"] == "rebuilt: damping 0.01 -> 0.02"
    assert steps["export", "gptq-int4-onnx"]["reason"] == "its checkpoint will be built first"
    assert not steps["export", "onnx-fp16"]["runs"]


def undone(out: Path, copy: Path, *done: str) -> list[str]:
    """The command that builds gptq-int4-onnx in a copy of a store in which these works are missing."""
    shutil.copytree(out / ".store", copy / ".store", copy_function=os.link)
    for work in done:
        stage, name = work.split()
        (folder,) = (copy / ".store" / stage).glob(f"{name}-{16 * '?'}")
        shutil.rmtree(folder)
    return arguments(copy, "--only", "gptq-int4-onnx")


@pytest.mark.parametrize(
    "work", ["quantize gptq-int4", "export gptq-int4-onnx", "evaluate gptq-int4-onnx-shard-2-of-2"]
)
def test_killed_at_any_stage_it_goes_on_and_ends_the_same(
    built: dict[str, Any], out: Path, tmp_path: Path, work: str
) -> None:
    line, moment = undone(out, tmp_path, work), f"{work}:"
    victim = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert victim.stderr is not None
    seen = []
    for text in victim.stderr:
        seen.append(text)
        if moment in text:
            break
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait(30)
    victim.stderr.close()
    assert moment in seen[-1], "".join(seen)
    done = run(*line)
    after = digests(summary_of(done))
    assert after == {name: digest for name, digest in digests(built).items() if name in after}
    assert "checkpoint fp16: cache hit" in done.stderr


def test_two_runs_at_once_do_no_harm(built: dict[str, Any], out: Path, tmp_path: Path) -> None:
    line = undone(out, tmp_path, "quantize gptq-int4", "export gptq-int4-onnx", *SHARDS)
    runs = [
        subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in runs:
        stdout, stderr = process.communicate(timeout=300)
        assert process.returncode in (0, 3, 4), stderr
        after = digests(json.loads(stdout.splitlines()[-1]))
        assert after == {name: digest for name, digest in digests(built).items() if name in after}
    assert run(*LINE, "verify", "--out", str(tmp_path)).returncode == 0


@pytest.mark.filterwarnings("ignore")  # Ray itself warns of much
def test_on_a_cluster_digests_are_the_same_and_a_killed_node_costs_its_running_stage(
    built: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    port = free_port()
    address = f"ray://{ray.util.get_node_ip_address()}:{port}"
    second = {"labels": {"gpu": "sm89"}, "num_gpus": 1}
    works = ("export onnx-fp16", "quantize gptq-int4", "export gptq-int4-onnx", *SHARDS)
    line = undone(out, tmp_path, *works)
    (tmp_path / "s3").mkdir()
    with (
        s3_server(tmp_path / "s3") as bucket,  # whose keys nodes and build have from this environment
        two_nodes({"ray_client_server_port": port}, second) as (nodes, node),
    ):
        url = f"{bucket}/store"
        victim = raylet(node)
        with connected(nodes.address, Store(tmp_path), memory=1_000_000) as cluster:
            assert cluster.targets == {"sm89"}
            assert cluster.call(os.getppid, target="sm89") == victim.pid, "what is for a GPU runs beside it"
            with pytest.raises(UserError, match="getppid may take 100 GB of memory, found at most 2 GB on 2"):
                Cluster(ray, Store(tmp_path), memory=10**11).call(os.getppid)
        build = subprocess.Popen(
            [*line, "onnx-fp16", "--on", address, "--store", url],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while build.poll() is None and not running(victim):
            time.sleep(0.2)
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / ".store").glob("*/*/manifest.json")}
        if build.poll() is not None:
            pytest.fail(f"no stage came to the second node: {build.communicate()[1]}")
        victim.kill()
        stdout, stderr = build.communicate(timeout=500)
        assert build.returncode in (0, 3, 4), stderr
        elsewhere = Store(tmp_path / "elsewhere", url=url)
        for work in works:
            (folder,) = (tmp_path / ".store").glob(f"{work.replace(' ', '/')}-{16 * '?'}")
            name = folder.relative_to(tmp_path / ".store")
            assert elsewhere.bring(elsewhere.root / name)
            assert Manifest.read(elsewhere.root / name).digest == Manifest.read(out / ".store" / name).digest
        new = ["--out", str(tmp_path / "new"), "--store", url]
        planned = run(*LINE, "plan", *new, *line[line.index("--json") :], "onnx-fp16")
    after = digests(json.loads(stdout.splitlines()[-1]))
    assert after == {name: digest for name, digest in digests(built).items() if name in after}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert run(*LINE, "verify", "--out", str(tmp_path)).returncode == 0
    steps = json.loads(planned.stdout)["steps"]
    assert {step["reason"] for step in steps if not step["runs"]} == {f"is at {url}"}
    assert [step["stage"] for step in steps if step["runs"]] == ["latency"]


def running(node: psutil.Process) -> bool:
    """Whether a node has a stage in work: Ray names a process by its task."""
    names = []
    for worker in node.children():
        with suppress(psutil.Error):  # one that has just ended
            names.append(" ".join(worker.cmdline()))
    return any(name.startswith("ray::") and not name.startswith(OWN) for name in names)


def test_verify_names_the_file_with_a_flipped_byte(built: dict[str, Any], out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "fp16"
    shutil.copytree(out / "qwen3-vl-micro" / "fp16", copy)
    assert run(*LINE, "verify", str(copy)).returncode == 0
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    done = run(*LINE, "verify", str(copy))
    assert done.returncode == 1
    assert "model.safetensors" in done.stdout


def test_list_and_inspect_tell_what_is_published(built: dict[str, Any], out: Path) -> None:
    listed = json.loads(run(*LINE, "list", "--out", str(out), "--json").stdout)["variants"]
    assert {row["variant"] for row in listed} == {
        v["name"] for v in built["variants"] if v["verdict"] == "PASS"
    }
    inspected = json.loads(run(*LINE, "inspect", str(out / "qwen3-vl-micro" / "fp16"), "--json").stdout)
    assert inspected["digest"] == digests(built)["fp16"]
    assert inspected["gate"]["verdict"] == "PASS"


def test_a_waived_variant_is_published_says_so_and_is_served(
    built: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    (tmp_path / ".store").symlink_to(out / ".store")
    (variant,) = (v for v in built["variants"] if v["name"] == "awq-int4-onnx")
    checks = {Check.model_validate(check).name for check in variant["checks"]}
    waivers = [
        {"variant": "awq-int4-onnx", "check": metric, "reason": "only for a test", "expires": "2999-01-01"}
        for metric in sorted(checks - {"accuracy"})
    ]
    limit = f"gate.waivers={json.dumps(waivers)}", "gate.max_bytes=1000", "gate.accuracy_margin=90"
    settings = [word for setting in limit for word in ("--set", setting)]
    done = run(*arguments(tmp_path, "--only", "awq-int4-onnx", *settings))
    summary = summary_of(done)
    found = {variant["name"]: variant for variant in summary["variants"]}
    assert found["fp16"]["verdict"] == "FAIL"  # what is too large and not waived
    assert found["awq-int4-onnx"]["verdict"] == "PASS"
    assert {Path(path).name for variant in summary["variants"] if (path := variant["path"])} == {
        "awq-int4-onnx"
    }
    (size,) = (check for check in found["awq-int4-onnx"]["checks"] if check["metric"] == "bytes")
    assert (size["verdict"], size["waived"]) == ("FAIL", True)
    assert "waiver in force: bytes" in (tmp_path / "qwen3-vl-micro" / "summary.md").read_text()
    selected = run(*LINE, "select", "--catalogue", str(tmp_path), "--device", "cpu", "--json")
    assert json.loads(selected.stdout)["choice"] == "awq-int4-onnx"
    port = free_port()
    choose = ["--select", "--catalogue", str(tmp_path)]
    with (
        running_up(tmp_path, port, *choose) as (process, said),
        OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):
        assert wait_for(said, "selected ").startswith("selected awq-int4-onnx for ")
        wait_for(said, "ready: router")
        answer = client.chat.completions.with_raw_response.create(
            model="qwen3-vl-micro", messages=[{"role": "user", "content": "Code of Zafolo?"}], max_tokens=8
        )
    assert answer.headers["x-ab-arm"] == "awq-int4-onnx"
    assert answer.headers["x-artifact-digest"] == found["awq-int4-onnx"]["digest"]
    assert process.returncode == 0


def test_another_architecture_of_the_family_runs_through(micro_checkpoint: Path, tmp_path: Path) -> None:
    model = tmp_path / "other"
    write_checkpoint(
        model, micro_checkpoint, layers=3, heads=4, kv_heads=1, patch_size=16, tied=False, shards=2
    )
    done = run(*arguments(tmp_path / "out", "--model", str(model), "--set", "evaluate.shard_items=40"))
    summary = summary_of(done)
    assert [variant["name"] for variant in summary["variants"]] == VARIANTS
    # A random model scores at chance, and on chance no verdict can rest.
    assert summary["verdict"] == "INCONCLUSIVE"
    assert done.returncode == 4


def llama(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (["--model", "/nonexistent"], "no such folder"),
        (["--model", "LLAMA"], "LlamaForCausalLM"),
        (["--set", "gate.acuracy_margin=1"], "did you mean gate.accuracy_margin?"),
        (["--recipe", "nope"], "expected one of micro, qwen3-vl-2b"),
        (["--only", "int3"], "no such variant"),
        (["--out", "/dev/null/artifacts"], "/dev/null"),
        (["--out", "/sys/artifacts"], "/sys/artifacts"),  # read-only, even for root
    ],
    ids=lambda case: case[0].strip("-") if isinstance(case, list) else "",
)
def test_bad_input_is_one_clear_line(tmp_path: Path, case: list[str], message: str) -> None:
    case = [str(llama(tmp_path / "llama")) if word == "LLAMA" else word for word in case]
    out = [] if "--out" in case else ["--out", str(tmp_path / "out")]
    done = run(*LINE, "all", *out, *case)
    assert done.returncode in (1, 2)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_clear_line_and_loses_nothing(built: dict[str, Any], out: Path) -> None:
    # A limit on file size fails a write as a full disk does: an OSError in the middle of a stage.
    limited = (
        "import resource, runpy, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "runpy.run_module('build', run_name='__main__')\n"
    )
    line = arguments(out, "--set", "quantize.group_size=64", "--only", "gptq-int4-onnx")
    done = run(sys.executable, "-c", limited, *line[3:])
    assert done.returncode == 1
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert run(*LINE, "verify", "--out", str(out)).returncode == 0
    again = summary_of(run(*arguments(out)))
    assert all(variant["cached"] for variant in again["variants"])
