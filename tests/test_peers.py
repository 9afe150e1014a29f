"""`python -m bench peers`: turns, figures worked by hand, failures told and never won."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.__main__ import main
from bench.peers import comparison, environments, machine
from bench.peers.catalogue import PEERS, Conversion, Environment, Peer
from bench.peers.comparison import chosen
from bench.peers.environments import converted, interpreter
from bench.peers.machine import Machine, Speed
from bench.peers.measure import Arm, Results, Visit, measure
from bench.peers.table import cells, markdown, prefill_operations, rows
from engines.config import ModelConfig
from engines.errors import UserError
from engines.export import export

VOCABULARY = 512
# A worker whose times are given on its command line and who writes down when it was started.
WORKER = """
import sys
from pathlib import Path
from bench.peers.workers.protocol import About, serve

MODEL, FIRST, STEP, TROUBLE = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
sys.argv[1:] = [sys.argv[1], sys.argv[5]]

class Fake:
    about = About("fake 1.0", "f16", 2, 1_000_000, 2_000_000, 0)

    def __init__(self, model, threads):
        with (MODEL / "starts").open("a") as file:
            file.write(sys.argv[0] + "\\n")
        print("libraries talk")
        if TROUBLE == "load":
            raise ValueError("no such\\nmodel")
        if TROUBLE == "dies":
            sys.exit("out of luck")

    def generate(self, prompts, count):
        with (MODEL / "prompts").open("a") as file:
            file.write(f"{prompts}\\n")
        if TROUBLE == "generate" and len(prompts) == 8:
            raise MemoryError("8 are too many")
        return [FIRST, *(count - 1) * [STEP]]

    def vision(self, image):
        if TROUBLE == "blind":
            raise NotImplementedError("has no eyes")
        if TROUBLE == "crash":
            raise RuntimeError("no picture")
        return 0.25

serve(Fake)
"""


@pytest.fixture(autouse=True)
def a_short_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "BUFFER", 1 << 20)
    monkeypatch.setattr(machine, "GEMM", 64)


def fake(
    folder: Path, name: str, first: float, step: float, trouble: str = "", rounds: int | None = None
) -> Arm:
    script = folder / f"{name}.py"
    script.write_text(WORKER)
    command = (sys.executable, str(script), str(folder), str(first), str(step), trouble)
    return Arm(name, command, rounds)


def run(arms: list[Arm], rounds: int = 1) -> Results:
    return measure(arms, vocabulary=VOCABULARY, rounds=rounds, threads=1, tell=lambda line: None)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, micro_checkpoint: Path) -> Path:
    """The decoder of the embedded checkpoint as a Qwen3 checkpoint."""
    folder = tmp_path_factory.mktemp("envs")
    return converted(Conversion("text", "text"), micro_checkpoint, folder, lambda line: None)


def config(micro_checkpoint: Path) -> Any:
    return ModelConfig.load(micro_checkpoint).text


def test_arms_take_turns_on_the_same_prompts(tmp_path: Path) -> None:
    arms = [fake(tmp_path, name, 1, 0.1, rounds=1 if name == "slow" else None) for name in ("a", "slow", "b")]
    results = run(arms, rounds=3)
    order = [Path(line).stem for line in (tmp_path / "starts").read_text().splitlines()]
    assert order == ["a", "slow", "b", "b", "a", "a", "b"]
    assert [len(results.visits[arm.name]) for arm in arms] == [3, 1, 3]
    asked = [json.loads(line) for line in (tmp_path / "prompts").read_text().splitlines()]
    visits = [asked[start : start + 3] for start in range(0, len(asked), 3)]
    assert visits[0] == visits[1] == visits[2]  # one round
    assert visits[3] == visits[4] != visits[0]  # another has new prompts
    assert [(len(prompts), len(prompts[0])) for prompts in visits[0]] == [(1, 8), (1, 512), (8, 64)]
    assert np.ptp(np.array(visits[0][1])) < VOCABULARY


def test_figures_are_those_worked_by_hand(tmp_path: Path, micro_checkpoint: Path) -> None:
    arms = [fake(tmp_path, "ours", 2, 0.1), fake(tmp_path, "peer", 1, 0.2)]
    results = run(arms, rounds=2)
    results.speeds = [Speed(read=1e8, fp32=1e10)]
    ours, peer = rows(results, arms, config(micro_checkpoint))
    assert (ours.decode.median, peer.decode.median) == pytest.approx((10, 5))
    assert (ours.prefill.median, peer.prefill.median) == pytest.approx((256, 512))
    assert (ours.together.median, peer.together.median) == pytest.approx((80, 40))
    ratios = [peer.decode_ratio.median, peer.prefill_ratio.median, peer.together_ratio.median]
    assert ratios == pytest.approx([0.5, 2, 0.5])
    assert ours.decode_ratio.median == ours.prefill_ratio.median == 1
    assert ours.vision
    assert ours.vision.median == pytest.approx(0.25)
    # 1 MB of weights and f16 keys and values of 4 layers, 2 heads of 32, 528 tokens; ten times a second.
    assert ours.bandwidth == pytest.approx(10 * (1_000_000 + 2 * 2 * 4 * 2 * 32 * 528) / 1e8)
    assert ours.memory >= ours.text_memory > 5e6
    assert ours.bytes == 2_000_000
    assert cells(peer)[:3] == ["peer", "5.0", "0.50"]


def test_prefill_operations_are_those_torch_counts(micro_checkpoint: Path, text: Path) -> None:
    """torch counts attention in full, half of which the causal mask makes needless."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = config(micro_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(text, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros((1, 96), dtype=torch.long), logits_to_keep=1, use_cache=False)
    width = shape.num_attention_heads * shape.head_dim
    needless = shape.num_hidden_layers * 2 * width * 96 * (96 - 1)
    assert counter.get_total_flops() - needless == pytest.approx(prefill_operations(shape, 96))


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        ("load", "ValueError: no such model"),
        ("dies", "ended with code 1: out of luck"),
        ("generate", "MemoryError: 8 are too many"),
    ],
)
def test_an_arm_that_fails_is_left_with_its_reason(
    tmp_path: Path, micro_checkpoint: Path, trouble: str, reason: str
) -> None:
    arms = [fake(tmp_path, "ours", 1, 0.1), fake(tmp_path, "broken", 0.001, 0.001, trouble)]
    results = run(arms, rounds=2)
    assert results.problems == {"broken": reason}
    assert results.visits["broken"] == []
    assert len(results.visits["ours"]) == 2
    found = rows(results, arms, config(micro_checkpoint))
    assert [row.name for row in found] == ["ours"]
    page = markdown(found, results.problems, here(), results.speeds, "header")
    assert f"| broken | not measured: {reason} |" in page


@pytest.mark.parametrize(
    ("trouble", "reason"), [("blind", "has no eyes"), ("crash", "RuntimeError: no picture")]
)
def test_a_peer_without_vision_is_measured_without(
    tmp_path: Path, micro_checkpoint: Path, trouble: str, reason: str
) -> None:
    arms = [fake(tmp_path, "blind", 1, 0.1, trouble)]
    (row,) = rows(run(arms), arms, config(micro_checkpoint))
    assert row.vision is None
    assert row.vision_problem == reason
    assert cells(row)[9] == "-"


def test_a_silent_worker_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.peers import measure as module

    monkeypatch.setattr(module, "LIMIT_S", 0.3)
    silent = Arm("silent", (sys.executable, "-c", "import time; time.sleep(60)"))
    assert run([silent]).problems == {"silent": "no answer within 0 s"}


def test_page_lines_are_as_wide_as_the_head(tmp_path: Path, micro_checkpoint: Path) -> None:
    arms = [fake(tmp_path, "ours", 1, 0.1)]
    results = run(arms)
    page = markdown(
        rows(results, arms, config(micro_checkpoint)), {"gone": "why"}, here(), results.speeds, "header"
    )
    first = [line for line in page.split("| engine | version")[0].splitlines() if line.startswith("|")]
    assert len(first) == 4
    assert len({line.replace("---|", "|").count("|") for line in first}) == 1


def here() -> Machine:
    return Machine("a processor", ("avx2",), 2, 8 * 10**9, "Linux 6", "abc")


def test_speeds_of_the_machine_are_of_its_order() -> None:
    found = machine.speed(1)
    assert 1e7 < found.read < 1e13
    assert 1e6 < found.fp32 < 1e14


@pytest.mark.parametrize("only", [["llama.cpp"], ["OPENVINO", "transformers"], []])
def test_peers_are_chosen_by_the_beginning_of_their_names(only: list[str]) -> None:
    names = [peer.name for peer in chosen(only)]
    assert names
    assert all(any(name.lower().startswith(start.lower()) for start in only or [""]) for name in names)
    assert only or len(names) == len(PEERS)


def test_an_unknown_peer_is_an_error() -> None:
    with pytest.raises(UserError, match="no peer begins with 'vllm'"):
        chosen(["llama.cpp", "vllm"])


def test_a_failed_install_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"broken failed: .*nowhere.*see .*pip\.log"):
        interpreter(Environment("broken", (str(tmp_path / "nowhere"),)), tmp_path, lambda line: None)


def test_an_environment_is_made_again_only_when_it_asks_for_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr(environments.venv, "create", lambda home, **_: made.append(home.name) or home.mkdir())
    monkeypatch.setattr(environments, "_run", lambda command, *_: made.append(command[-1]))
    for requirement in ("a==1", "a==1", "a==2"):
        interpreter(Environment("some", (requirement,)), tmp_path, lambda line: None)
    assert made == ["some", "a==1", "some", "a==2"]


def test_a_conversion_is_made_once_for_a_checkpoint(text: Path, micro_checkpoint: Path) -> None:
    told: list[str] = []
    again = converted(Conversion("text", "text"), micro_checkpoint, text.parents[2], told.append)
    assert (again, told) == (text, [])


def test_a_failed_conversion_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"converting to text failed: .*none named: expected Qwen3VL"):
        converted(Conversion("text", "text"), tmp_path, tmp_path / "out", lambda line: None)


def test_the_text_checkpoint_computes_the_same(text: Path, micro_checkpoint: Path) -> None:
    """transformers' Qwen3 on the converted folder against its Qwen3-VL on the checkpoint."""
    from transformers import Qwen3VLForConditionalGeneration

    ids = torch.arange(5, 45)[None]
    with torch.inference_mode():
        part = AutoModelForCausalLM.from_pretrained(text, dtype=torch.float32)(ids).logits
        whole = Qwen3VLForConditionalGeneration.from_pretrained(micro_checkpoint, dtype=torch.float32)(
            ids
        ).logits
    torch.testing.assert_close(part, whole, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory, micro_checkpoint: Path) -> Path:
    from engines.checkpoint import Checkpoint

    out = tmp_path_factory.mktemp("micro") / "artifact"
    export(Checkpoint.open(micro_checkpoint), out)
    return out


def test_the_command_writes_what_it_shows(
    tmp_path: Path,
    micro_checkpoint: Path,
    artifact: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = Environment("missing", (str(tmp_path / "nowhere"),))
    peers = (Peer("transformers", "transformers"), Peer("lost", "onnx", missing))
    monkeypatch.setattr(comparison, "PEERS", peers)
    out, envs = tmp_path / "results", tmp_path / "envs"
    options = ["--envs", str(envs), "--out", str(out), "--rounds", "1", "--threads", "1", "--json"]
    code = main(["peers", str(micro_checkpoint), "--artifact", str(artifact), *options])
    assert code == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((out / "peers.json").read_text())
    assert [row["name"] for row in printed["rows"]] == ["artifact", "transformers"]
    assert list(printed["problems"]) == ["lost"]
    visit = Visit(**printed["visits"]["artifact"][0])
    assert visit.vision
    assert len(visit.decode) == 31
    page = (out / "peers.md").read_text()
    assert "| lost | not measured: missing failed: " in page
    assert printed["machine"]["commit"] in page
    assert f"`python -m bench peers {micro_checkpoint.name} --artifact artifact --rounds=1`" in page


def test_our_own_failure_is_an_error(
    tmp_path: Path,
    micro_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(comparison, "PEERS", ())
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "decoder.onnx").write_bytes(b"no graph")
    arguments = ["peers", str(micro_checkpoint), "--artifact", str(tmp_path / "broken"), "--rounds", "1"]
    assert main([*arguments, "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: broken: UserError: ")
