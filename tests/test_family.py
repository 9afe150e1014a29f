"""The other sizes of the family in small, 4B, 8B and 32B, read, exported, in 4 bits, answering."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import httpx2
import numpy as np
import pytest
import torch

from bench.__main__ import main as bench
from build.__main__ import main as build
from engines.__main__ import main as engines
from engines.checkpoint import Checkpoint
from engines.export import export, export_standard
from engines.generate import generate
from engines.onnx_session import OnnxSession
from engines.processor import Processor
from engines.reference import ReferenceSession
from quantize.__main__ import main as quantize
from quantize.pipeline import quantize_checkpoint
from serve.__main__ import main as serve
from tests.checkpoints import FAMILY, edit_json, write_checkpoint
from tests.conftest import ROOT
from tests.live_arm import live_arm
from tests.test_parity import STEPS, TOLERANCE, assert_equal, cases, error, follow

CALIBRATION = ROOT / "tests" / "data" / "calibration.jsonl"
LAYERS = 4  # the first three take deepstack's features


class Folders:
    """A member of the family in every form, each made when it is asked for."""

    def __init__(self, work: Path, checkpoint: Path, method: str) -> None:
        self.work, self.checkpoint, self.method = work, checkpoint, method
        self.quantized, self.exported = cache(self._quantized), cache(self._exported)

    def _quantized(self) -> Path:
        out, work = self.work / self.method, self.work / "unfinished"
        options = {"method": self.method, "group_size": 32, "calibration": CALIBRATION, "work_dir": work}
        quantize_checkpoint(self.checkpoint, out, **options)
        return out

    def _exported(self, accuracy_level: int | None = None) -> Path:
        """In 16 bits, or quantised."""
        out = self.work / f"onnx {accuracy_level}"
        if accuracy_level is None:
            export(Checkpoint.open(self.checkpoint), out)
        else:
            export(Checkpoint.open(self.quantized()), out, accuracy_level=accuracy_level)
        return out


@pytest.fixture(
    scope="module", params=[("4B", "awq"), ("8B", "gptq"), ("32B", "awq")], ids=lambda param: param[0]
)
def member(
    request: pytest.FixtureRequest, micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Folders:
    work = tmp_path_factory.mktemp("member")
    name, method = request.param
    shape = FAMILY[name] | {"layers": LAYERS, "dtype": torch.bfloat16, "shards": 2}
    return Folders(work, write_checkpoint(work / "checkpoint", micro_checkpoint, **shape), method)


def test_graphs_equal_transformers(member: Folders, tmp_path: Path) -> None:
    prompts = list(cases(Processor.load(member.checkpoint)).values())[-2:]
    expected = follow(ReferenceSession(member.checkpoint, dtype="float32", threads=1), prompts)
    export_standard(Checkpoint.open(member.checkpoint), tmp_path)
    for artifact in (member.exported(), tmp_path):
        session = OnnxSession(artifact, threads=1)
        for found, wanted in zip(follow(session, prompts), expected, strict=True):
            assert_equal(session, found, wanted)


def test_graphs_in_4_bits_equal_transformers(member: Folders) -> None:
    """But for the tail of the distribution, which a head in 4 bits computes."""
    checkpoint = member.quantized()
    prompt = cases(Processor.load(checkpoint))["image and video"]
    expected = follow(ReferenceSession(checkpoint, dtype="float32", threads=1), [prompt])[0]
    best = np.argsort(-expected, axis=-1)[..., :16]
    for level, tolerance in ((0, TOLERANCE[np.float32]), (4, 0.05)):
        found = follow(OnnxSession(member.exported(level), threads=1), [prompt])[0]
        kept = len(found) if level == 0 else len(found) - STEPS  # other tokens may follow once one differs
        likely, wanted = (np.take_along_axis(x, best, -1)[:kept] for x in (found, expected))
        assert error(likely, wanted) <= tolerance
        if level == 0:
            assert found.argmax(-1).tolist() == expected.argmax(-1).tolist()


@pytest.mark.parametrize(
    "found", ["Qwen3VLMoeForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"]
)
@pytest.mark.parametrize(
    ("main", "line"),
    [
        (build, "plan --model {model} --out {out}"),
        (build, "all --model {model} --out {out}"),
        (quantize, "{model} --method rtn --group-size 128 -o {out}"),
        (engines, "export {model} --out {out}"),
        (engines, "run {model} --prompt hi"),
        (serve, "arm {model} --port 0"),
        (bench, "compare {model} {model}"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else value.__module__.split(".")[0],
)
def test_other_architectures_are_refused_in_one_line(
    main: Callable[[list[str]], int],
    line: str,
    found: str,
    micro_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(micro_checkpoint, model)
    edit_json(model / "config.json", architectures=[found])
    assert main(line.format(model=model, out=out).split()) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ")
    assert f"describes {found}: expected Qwen3VLForConditionalGeneration, a dense Qwen3-VL" in told
    assert not list(out.glob("*"))


@pytest.mark.parametrize("member", [("8B", "gptq")], indirect=True, ids=["8B"])
def test_an_arm_answers_in_4_bits(member: Folders) -> None:
    artifact = member.exported(4)
    prompt = {"role": "user", "content": "Which?"}
    inputs = Processor.load(artifact)([prompt])
    said = generate(OnnxSession(artifact, threads=1), Processor.load(artifact), inputs, max_tokens=8)
    with live_arm(artifact, "--context=256") as arm:
        body = {"messages": [prompt], "temperature": 0, "max_tokens": 8}
        answer = httpx2.post(f"{arm.url}/v1/chat/completions", json=body, timeout=60).json()
    assert answer["choices"][0]["message"]["content"] == said.text
