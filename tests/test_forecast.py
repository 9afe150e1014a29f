"""Forecasts against what is really written and allocated, and refusals of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.resources import DECODED, REQUESTS, WARMUP
from bench.shape import SHAPES
from build import forecast, rates
from build.__main__ import main
from build.forecast import Load, disk_bytes, kv_bytes_per_token, longest_context, memory_bytes
from build.rates import Machine
from build.recipe import KINDS, load_recipe
from build.stages import CACHE_SAMPLES
from engines.checkpoint import Checkpoint, expected_tensors
from engines.config import ModelConfig
from engines.device import Gpu
from engines.export import export
from engines.onnx_session import OnnxSession
from engines.processor import Inputs
from tests.checkpoints import write_checkpoint
from tests.int4_checkpoints import write_int4_pair

GROUP = 32
MACHINE = Machine(flops=1e11, read=2e10, hashed=1e9)


# The 8B's is that of the published safetensors; the others are counted here.
PARAMETERS = {
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "qwen3-vl-32b": 33_357_390_064,
}


def full_size(name: str = "qwen3-vl-2b", *, tied: bool | None = None) -> ModelConfig:
    shape = SHAPES[name]
    ids = dict.fromkeys(("image_token_id", "video_token_id"), 0)
    ids |= dict.fromkeys(("vision_start_token_id", "vision_end_token_id"), 0)
    return ModelConfig.model_validate(
        {
            "text": shape["text_config"],
            "vision": shape["vision_config"],
            "eos_token_ids": (),
            "tie_word_embeddings": shape["tie_word_embeddings"] if tied is None else tied,
            **ids,
        }
    )


def prompt(length: int) -> Inputs:
    return Inputs(np.full(length, 5), np.tile(np.arange(length), (3, 1)), (), length)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_tensors(name: str) -> None:
    config = full_size(name)
    assert sum(int(np.prod(shape)) for _, shape in expected_tensors(config)) == PARAMETERS[name]
    assert forecast.Size.of(config).total == pytest.approx(PARAMETERS[name], rel=1e-3)


@pytest.mark.parametrize("variant", list(KINDS))
def test_an_untied_head_is_stored_and_no_more_memory(variant: str) -> None:
    """Of the table of embeddings few rows are read, as of the 16-bit rows of a head in 4 bits: of which a
    tied one takes the same."""
    tied, untied = (full_size("qwen3-vl-8b", tied=tied) for tied in (True, False))
    head = 2 * 151936 * 4096
    twice = KINDS[variant].target and KINDS[variant].method  # the engine for steps is one of its own
    more = disk_bytes(untied, variant, 128) - disk_bytes(tied, variant, 128)
    assert more == pytest.approx(2 * head if twice else head, abs=1)
    held, wanted = (memory_bytes(config, variant, 128, 4096, 1) for config in (untied, tied))
    assert held - wanted == pytest.approx(more - head, abs=1)


WIDE = {"layers": 6, "depth": 4, "vision_hidden_size": 256, "vision_intermediate_size": 512}
HEADED = {"layers": 1, "depth": 1, "tied": False}  # an eighth of it is the head


@pytest.fixture(scope="module", params=[WIDE, HEADED], ids=["wide", "untied"])
def folders(
    request: pytest.FixtureRequest, micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A model wide enough that its weights outweigh the graphs, in every kind of folder."""
    work = tmp_path_factory.mktemp("folders")
    dense = write_checkpoint(
        work / "fp16",
        micro_checkpoint,
        hidden_size=256,
        intermediate_size=512,
        dtype=torch.float16,
        **request.param,
    )
    packed, _ = write_int4_pair(dense, work, GROUP)
    made = {"fp16": dense, "gptq-int4": packed}
    for name, source in (("onnx-fp16", dense), ("gptq-int4-onnx", packed), ("gptq-int4-onnx-kv8", packed)):
        made[name] = work / name
        prompts = [prompt(9)] if KINDS[name].int8_cache else []
        export(Checkpoint.open(source), made[name], cache_prompts=prompts)
    return made


@pytest.mark.parametrize("variant", ["fp16", "onnx-fp16", "gptq-int4", "gptq-int4-onnx"])
def test_disk_forecast_is_within_a_tenth(folders: dict[str, Path], variant: str) -> None:
    names = ("safetensors", "onnx", "data", "bin")
    written = sum(
        path.stat().st_size for path in folders[variant].iterdir() if path.name.endswith(names)
    ) - sum(path.stat().st_size for path in folders[variant].glob("*.onnx"))  # the graphs themselves
    config = ModelConfig.load(folders["fp16"])
    assert disk_bytes(config, variant, GROUP) == pytest.approx(written, rel=0.1)


@pytest.mark.parametrize("variant", ["onnx-fp16", "gptq-int4-onnx", "gptq-int4-onnx-kv8"])
def test_cache_bytes_are_those_allocated(folders: dict[str, Path], variant: str) -> None:
    session = OnnxSession(folders[variant], threads=1)
    _, cache = session.prefill([prompt(5)], capacity=64)
    allocated = sum(value.numpy().nbytes for value in cache.state.keys_values.values())
    assert kv_bytes_per_token(session.config, variant) * 64 == allocated


@pytest.mark.parametrize("variant", list(KINDS))
@pytest.mark.parametrize("memory", [5 * 10**9, 6 * 10**9])
def test_the_longest_context_fits_and_one_more_token_does_not(variant: str, memory: int) -> None:
    config = full_size()
    longest = longest_context(config, variant, 128, 2, memory)
    if longest:
        assert memory_bytes(config, variant, 128, longest, 2) <= memory
    if longest < config.text.max_position_embeddings:
        assert memory_bytes(config, variant, 128, longest + 1, 2) > memory


def test_an_int8_cache_reaches_further() -> None:
    contexts = [
        longest_context(full_size(), variant, 128, 1, 6 * 10**9)
        for variant in ("onnx-fp16", "gptq-int4-onnx", "gptq-int4-onnx-kv8")
    ]
    assert 0 < contexts[0] < contexts[1] < contexts[2] / 3


def test_nothing_fits_where_the_weights_do_not() -> None:
    assert longest_context(full_size(), "onnx-fp16", 128, 1, 10**9) == 0


@pytest.mark.parametrize("stage", ["checkpoint", "quantize", "export", "evaluate", "memory"])
def test_a_faster_machine_takes_less(stage: str) -> None:
    recipe, config = load_recipe("qwen3-vl-2b"), full_size()
    load = Load(200, 256)
    fast = Machine(2 * MACHINE.flops, 2 * MACHINE.read, 2 * MACHINE.hashed)
    slow_s, fast_s = (
        forecast.seconds(stage, config, "gptq-int4", recipe, machine, load, Load(512, 784, 32))
        for machine in (MACHINE, fast)
    )
    assert fast_s < slow_s


def test_scaling_an_int8_cache_is_counted() -> None:
    recipe, config, seen = load_recipe("qwen3-vl-2b"), full_size(), Load(512, 784, 32)
    plain, scaled = (
        forecast.seconds("export", config, f"gptq-int4-onnx{end}", recipe, MACHINE, Load(1, 0), seen)
        for end in ("", "-kv8")
    )
    prompts = CACHE_SAMPLES * 512 * 2 * 1.4e9 / MACHINE.flops
    assert plain + prompts < scaled < plain + 3 * prompts


def test_more_work_takes_longer() -> None:
    recipe, config = load_recipe("qwen3-vl-2b", overrides=["evaluate.shard_items=1000"]), full_size()
    more = ["evaluate.items=2000", "evaluate.shard_items=2000", "evaluate.max_tokens=384"]
    double = load_recipe("qwen3-vl-2b", overrides=more)

    def time(of: Any) -> float:
        return forecast.seconds("evaluate", config, "fp16", of, MACHINE, Load(100, 100), Load(0, 0))

    assert 1.9 * time(recipe) < time(double) < 4 * time(recipe)
    short = forecast.seconds("evaluate", config, "fp16", recipe, MACHINE, Load(100, 100, steps=9), Load(0, 0))
    assert short < time(recipe) / 2


def test_all_shards_of_an_evaluation_take_as_long_as_the_whole_and_their_starts() -> None:
    config, load = full_size(), Load(100, 100, steps=9)

    def time(*settings: str) -> float:
        recipe = load_recipe("qwen3-vl-2b", overrides=["evaluate.batch_size=5", *settings])
        return forecast.seconds("evaluate", config, "fp16", recipe, MACHINE, load, Load(0, 0))

    whole, quarter = time("evaluate.shard_items=1000"), time("evaluate.shard_items=250")
    assert 4 * quarter - whole == pytest.approx(3 * forecast.TRANSFORMERS.start_seconds, rel=0.01)


def test_every_batch_of_every_arm_is_counted_in_the_latency() -> None:
    config, load = full_size(), Load(200, 256)

    def time(arms: list[str], *settings: str) -> float:
        overrides = ["latency.warmup=1", "latency.rates=[]", *settings]
        recipe = load_recipe("qwen3-vl-2b", overrides=overrides)
        return forecast.latency_seconds(config, recipe, MACHINE, load, arms)

    alone = time(["fp16"], "latency.batches=[1]")
    assert time(["fp16", "fp16"], "latency.batches=[1]") == pytest.approx(2 * alone)
    assert 1.2 * alone < time(["fp16"], "latency.batches=[1, 4]") < 2 * alone
    assert 2.5 * alone < time(["fp16"], "latency.batches=[1]", "latency.rates=[0.2, 0.9]") < 3 * alone


def test_the_requests_that_show_a_leak_are_counted() -> None:
    """In bytes read alone: a step of 16 bits reads all weights once, and there are steps of many requests."""
    config, recipe = full_size(), load_recipe("qwen3-vl-2b")
    seconds = forecast.seconds("memory", config, "fp16", recipe, MACHINE, Load(1, 0), Load(0, 0))
    steps = (WARMUP + REQUESTS) * DECODED
    assert seconds > steps * 2 * 1.7e9 / MACHINE.read


@pytest.mark.parametrize("command", ["all", "plan"])
def test_a_context_that_does_not_fit_is_refused_before_any_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--memory", "105 MB", "--only", "onnx-fp16", "--set", "gate.context=4096", "--out"]
    assert main([command, *line, str(tmp_path / "out")]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("error: onnx-fp16 at context 4096 x 1 needs about 1")
    assert "--memory is 105 MB: set gate.context to" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["6 apples", "0GB", "-1", "GB"])
def test_sizes_are_checked(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plan", f"--memory={size}"])
    assert "expected a size such as 6GB" in capsys.readouterr().err


def test_with_its_gpu_a_variant_is_measured_beside_the_baseline_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("build.place.find_gpu", lambda: Gpu("RTX 4090 D", "sm89", 24 << 30, "580"))
    monkeypatch.setattr(rates, "measure", lambda: MACHINE)
    main(["plan", "--json", "--out", str(tmp_path), "--set", "variants=[fp16, onnx-fp16, trt-fp16-sm89]"])
    steps = json.loads(capsys.readouterr().out)["steps"]
    measured = [step["name"] for step in steps if step["stage"] == "memory"]
    assert measured == ["fp16", "onnx-fp16", "fp16-cuda", "trt-fp16-sm89"]
    assert [step["name"] for step in steps if step["stage"] == "evaluate"] == measured
