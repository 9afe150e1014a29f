"""TensorRT engines, really built for GPUs that are not here; the same graphs show what they compute."""

from __future__ import annotations

import importlib
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from build.__main__ import main as build
from engines.__main__ import main
from engines.checkpoint import Checkpoint
from engines.device import Gpu
from engines.engine_files import RTX, TENSORRT, EngineFacts
from engines.errors import UserError
from engines.export import export_standard
from engines.graphs.narrow import NarrowFloats
from engines.narrow import to_nvfp4
from engines.onnx_files import DECODER, HEAD, STEP, VISION
from engines.onnx_session import OnnxSession
from engines.tensorrt.compiler import compile_graph, pinned
from engines.tensorrt.engines import (
    KERNEL_BYTES,
    NARROW,
    Limits,
    check_plan,
    check_size,
    compile_artifact,
    ranges,
    weight_bytes,
)
from engines.tensorrt.plan import Plan, parse_plan
from engines.tensorrt.targets import FP8, FP16, INT4, NVFP4, TARGETS, find_target
from tests.int4_checkpoints import write_int4_pair

SMALL = Limits(context=96, chunk=32, patches=256)
LAYERS, BLOCKS = 4, 3  # of the micro checkpoint
LINEARS = LAYERS * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256)  # its decoder's weights


@pytest.fixture(scope="module")
def networks(micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The standard graphs of the micro checkpoint in 16 bits, and with its linears in 4."""
    folder = tmp_path_factory.mktemp("networks")
    packed, _ = write_int4_pair(micro_checkpoint, folder / "int4 pair")
    for name, checkpoint in (("fp16", micro_checkpoint), ("int4", packed)):
        export_standard(Checkpoint.open(checkpoint), folder / name)
    return {name: folder / name for name in ("fp16", "int4")}


@pytest.fixture(scope="module")
def engines(networks: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("engines") / "sm89"
    compile_artifact(networks["int4"], out, "sm89", SMALL)
    return out


def test_int4_engines_keep_their_weights_in_4_bits(networks: dict[str, Path], tmp_path: Path) -> None:
    plans = compile_artifact(networks["int4"], tmp_path / "out", "sm89", SMALL)
    assert set(plans) == {VISION, DECODER, STEP}
    for name in (DECODER, STEP):
        assert plans[name].constants["Int4"] == LINEARS
        assert plans[name].products("Int4") in (4 * LAYERS, 7 * LAYERS)  # q, k, v and gate, up may be joined
        assert plans[name].attention_kernels == LAYERS
        assert plans[name].constants["Half"] < 512 * 128  # the head is not among them, and is read as it lies
        assert any(HEAD in layer.inputs for layer in plans[name].layers)
    assert any("gemv" in layer.name for layer in plans[STEP].layers)
    assert plans[VISION].attention_kernels == BLOCKS
    assert plans[VISION].constants["Int4"] == 0
    # Norms' scales and the head aside, the plan holds what the checkpoint does.
    assert plans[VISION].constants["Half"] > 1.4e6


def test_16_bit_engines_hold_the_decoder_once(networks: dict[str, Path], tmp_path: Path) -> None:
    plans = compile_artifact(networks["fp16"], tmp_path / "out", "sm86", SMALL)
    assert set(plans) == {VISION, DECODER}
    assert plans[DECODER].constants["Half"] > LINEARS
    assert not (tmp_path / "out" / "step.engine").exists()


def test_an_engine_is_as_large_as_its_weights(engines: Path) -> None:
    weights = LINEARS / 2 + LINEARS / 32 * 2
    kernels = 6e6  # of this model's plans the most is code, which does not grow with it
    assert weights < (engines / "step.engine").stat().st_size < weights + kernels


H200 = Gpu("NVIDIA H200", "sm90", 140 << 30, "580.95")


@pytest.mark.parametrize(
    ("target", "weights", "gpu", "message"),
    [
        ("sm33", FP16, None, "target sm33: expected one of sm75, sm80"),
        ("sm75", INT4, None, r"sm75 \(RTX 20, T4\) has no products with int4 weights: found on sm80, sm86"),
        ("sm86", FP8, None, "sm86 .* has no products with fp8 weights: found on sm89, sm90"),
        ("sm89", NVFP4, None, "sm89 .* has no products with nvfp4 weights: found on sm100, sm120"),
        (
            "sm90",
            INT4,
            None,
            "engines for sm90 .* compiled by TensorRT on that very GPU, here is no NVIDIA GPU",
        ),
        ("sm100", FP16, H200, r"here is NVIDIA H200 \(sm90\): run this on a machine that has one"),
    ],
)
def test_a_target_that_cannot_be_built_for_says_why(
    target: str, weights: str, gpu: Gpu | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        find_target(target, weights, gpu)


def test_each_target_goes_to_its_own_tensorrt() -> None:
    assert find_target("sm89", FP8, None).runtime is RTX
    assert find_target("sm90", FP8, H200).runtime is TENSORRT


@pytest.fixture(scope="module", params=[("fp8", "sm89", "sm86"), ("nvfp4", "sm120", "sm89")])
def narrow(
    request: pytest.FixtureRequest, micro_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str, str]:
    """Graphs in 8- or 4-bit floats: their folder, the type, a target that has it, one that has not."""
    weights, able, unable = request.param
    folder = tmp_path_factory.mktemp("narrow") / weights
    export_standard(Checkpoint.open(micro_checkpoint), folder, weights=weights)
    return folder, weights, able, unable


def test_both_sides_of_a_product_are_in_8_or_4_bit_floats(
    narrow: tuple[Path, str, str, str], tmp_path: Path
) -> None:
    folder, weights, target, _ = narrow
    find_target(target, weights, None)
    for name in (DECODER, STEP):
        sizes, engine = ranges(SMALL)[name], tmp_path / "out.engine"
        plan = compile_graph(folder / DECODER, engine, TARGETS[target], sizes)
        check_plan(plan, name, pinned(folder / DECODER, sizes))
        check_size(engine, pinned(folder / DECODER, sizes))
        kind = NARROW[weights][1]
        assert plan.constants[kind] == LINEARS
        assert plan.products(kind) in (4 * LAYERS, 7 * LAYERS)


def test_the_compiler_itself_refuses_floats_a_gpu_lacks(
    narrow: tuple[Path, str, str, str], tmp_path: Path
) -> None:
    folder, _, _, target = narrow
    with pytest.raises(UserError, match=f"cannot build it for {target}"):
        compile_graph(folder / DECODER, tmp_path / "no.engine", TARGETS[target], ranges(SMALL)[DECODER])


def test_weights_that_are_widened_before_each_product_are_refused(
    micro_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the weights in NVFP4: TensorRT writes them out in fp16, in a kernel that reads nothing else."""

    def linear(self: NarrowFloats, name: str, x: str, weight: Any, bias: Any = None) -> str:
        return self.op("MatMul", [x, self._nvfp4(name, to_nvfp4(weight))], name=name)

    monkeypatch.setattr(NarrowFloats, "linear", linear)
    export_standard(Checkpoint.open(micro_checkpoint), tmp_path, weights="nvfp4")
    sizes = ranges(SMALL)[DECODER]
    plan = compile_graph(tmp_path / DECODER, tmp_path / "engine", TARGETS["sm120"], sizes)
    with pytest.raises(UserError, match="0 products with nvfp4 weights, expected 4 to 7 for each of its 4"):
        check_plan(plan, DECODER, pinned(tmp_path / DECODER, sizes))


def test_an_engine_that_holds_more_or_less_than_its_weights_is_refused(
    engines: Path, networks: dict[str, Path], tmp_path: Path
) -> None:
    decoder = pinned(networks["int4"] / DECODER, ranges(SMALL)[STEP])
    check_size(engines / "step.engine", decoder)
    for size in (weight_bytes(decoder) // 2, 2 * weight_bytes(decoder) + int(KERNEL_BYTES)):
        (tmp_path / "engine").write_bytes(bytes(size))
        with pytest.raises(UserError, match=f"has {size} bytes, its graph's weights {weight_bytes(decoder)}"):
            check_size(tmp_path / "engine", decoder)


def test_a_rounded_checkpoint_is_not_rounded_again(networks: dict[str, Path], tmp_path: Path) -> None:
    packed = networks["int4"].parent / "int4 pair" / "packed"
    with pytest.raises(UserError, match="is quantized: fp8 weights are made from a 16-bit checkpoint"):
        export_standard(Checkpoint.open(packed), tmp_path / "out", weights="fp8")


def test_the_compiler_itself_refuses_4_bits_on_sm75(networks: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot build it for sm75: .*int4"):
        compile_graph(
            networks["int4"] / DECODER, tmp_path / "no.engine", TARGETS["sm75"], ranges(SMALL)[DECODER]
        )
    assert not (tmp_path / "no.engine").exists()


def test_a_graph_that_ignores_an_input_is_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    """Attention that is told the lengths and not the mask parses, and then attends to the whole cache."""
    shutil.copytree(networks["int4"], tmp_path / "network")
    model = onnx.load(tmp_path / "network" / DECODER, load_external_data=False)
    for node in model.graph.node:
        if node.op_type == "Attention":
            del node.input[3]
    (tmp_path / "network" / DECODER).write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match="the engine for sm89 ignores the input attention_mask"):
        compile_artifact(tmp_path / "network", tmp_path / "out", "sm89", SMALL)


def test_a_plan_that_widened_its_weights_is_refused(networks: dict[str, Path], tmp_path: Path) -> None:
    plan = compile_graph(
        networks["fp16"] / DECODER, tmp_path / "wide.engine", TARGETS["sm89"], ranges(SMALL)[DECODER]
    )
    wanted = onnx.load(networks["int4"] / DECODER, load_external_data=False)
    with pytest.raises(UserError, match=f"holds 0 weights in int4, expected {LINEARS}"):
        check_plan(plan, DECODER, wanted)
    with pytest.raises(UserError, match=f"has 0 attention kernels, expected {LAYERS}"):
        check_plan(Plan(()), DECODER, wanted)


def test_a_context_too_long_for_memory_is_an_error_not_a_crash(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="a context of 0: expected 1 or more"):
        compile_artifact(networks["int4"], tmp_path / "out", "sm89", Limits(context=0))


def test_report_is_read_as_the_compiler_prints_it() -> None:
    def tensor(name: str, dimensions: str, kind: str) -> str:
        layout = "Strides: [1], StrideOrder: [0]"
        return f"{{ Name: {name}, Dimensions: [{dimensions}], {layout}, Datatype: {kind}, Format: (Linear) }}"

    inputs = f"{tensor('present_key.0', '1,2,256,32', 'Half')}, {tensor('x', '1,-1', 'Half')}"
    constants = f"{tensor('w', '1,128,64', 'Int4')}, {tensor('s', '4,64', 'Half')}"
    outputs = tensor("y", "4", "Half")
    line = (
        f"Name: _gemv_mha_v1_myl0_5, LayerType: kgen, Inputs: [ {inputs}], Constants: [ {constants}], "
        f"Outputs: [ {outputs}], TacticName: _gemv_mha_v1_0x6f, StreamId: 0, Metadata: "
    )
    plan = parse_plan(["noise\n" + line + "\nmore noise", "Name: but no layer"])
    (layer,) = plan.layers
    assert layer.inputs == {"present_key.0", "x"}
    assert layer.constants == {"Int4": 128 * 64, "Half": 256}
    assert (plan.attention_kernels, plan.products("Int4")) == (1, 1)
    (widened,) = parse_plan([line.replace(inputs, "")]).layers  # it reads nothing but constants
    assert Plan((widened,)).products("Int4") == 0
    assert plan.unread(["past_key.0", "x", "mask"]) == ["mask"]


def test_a_stand_in_has_the_inputs_and_outputs_of_its_graph(engines: Path, networks: dict[str, Path]) -> None:
    for name, source in ((VISION, VISION), (DECODER, DECODER), (STEP, DECODER)):
        stand_in = onnx.load(engines / name).graph
        (node,) = stand_in.node
        graph = pinned(networks["int4"] / source, ranges(SMALL)[name]).graph
        assert list(stand_in.input) == list(graph.input)
        assert list(stand_in.output) == list(graph.output)
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert (engines / attributes["ep_cache_context"].decode()).read_bytes()[:4] == b"vtrt"


def test_session_takes_an_engine_for_prompts_and_one_for_steps(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    """What a folder of engines asks of a session, with the graphs themselves in the engines' place."""
    folder = shutil.copytree(networks["int4"], tmp_path / "pinned")
    for name in (STEP, DECODER):
        model = pinned(networks["int4"] / DECODER, ranges(SMALL)[name])
        (folder / name).write_bytes(model.SerializeToString())
    free, fixed = (OnnxSession(path, threads=1, chunk=16) for path in (networks["int4"], folder))
    prompts = [_prompt(40)]
    (expected, cache), (found, other) = (session.prefill(prompts, capacity=64) for session in (free, fixed))
    np.testing.assert_array_equal(found, expected)
    for token in (5, 9, 17):
        tokens = np.array([token])
        np.testing.assert_array_equal(fixed.decode(tokens, other), free.decode(tokens, cache))
    with pytest.raises(UserError, match="97 tokens: these engines were built for a context of 96"):
        fixed.prefill(prompts, capacity=97)


def _prompt(length: int) -> Any:
    from engines.processor import Inputs

    positions = np.broadcast_to(np.arange(length), (3, length))
    return Inputs(np.arange(3, 3 + length), positions, (), length)


ADA = Gpu("NVIDIA GeForce RTX 4090 D", "sm89", 24 << 30, "580.95")


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        (None, "holds engines for sm89: this machine has no NVIDIA GPU"),
        (
            replace(ADA, driver="570.133"),
            "engines for CUDA 13, the driver here is 570.133: install driver 580 or newer",
        ),
        (
            H200,
            r"for sm89, the GPU here is NVIDIA H200 \(sm90\): build them for it with --target sm90",
        ),
    ],
)
def test_engines_for_another_device_are_refused(engines: Path, gpu: Gpu | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EngineFacts.read(engines).check_device(engines, gpu)


def test_engines_are_refused_by_another_version(engines: Path) -> None:
    facts = EngineFacts.read(engines)
    facts.check_device(engines, ADA)
    facts.check_version(engines, "1.7.9")
    built = r"built by TensorRT for RTX 1\.7\.1\.116 for CUDA 13, here is"
    with pytest.raises(UserError, match=built + r" 1\.8\.0 for CUDA 13: install that version or build"):
        facts.check_version(engines, "1.8.0")
    older = facts.model_copy(update={"cuda": 12})
    with pytest.raises(UserError, match=r"for CUDA 12, here is 1\.7\.1 for CUDA 13"):
        older.check_version(engines, "1.7.1")


@pytest.mark.parametrize("content", [b"", b"ftrt an engine of something else"])
def test_a_foreign_plan_is_refused(engines: Path, tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(engines, tmp_path / "engines")
    (folder / "step.engine").write_bytes(content)
    with pytest.raises(UserError, match=r"step\.engine is no plan of TensorRT for RTX"):
        EngineFacts.read(folder).check_device(folder, ADA)


def test_engines_of_plain_tensorrt_are_run_by_its_own_provider(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as that goes: a plan of the other TensorRT, then an onnxruntime that lacks the provider."""
    monkeypatch.setattr("engines.onnx_session.find_gpu", lambda: H200)
    folder = shutil.copytree(engines, tmp_path / "engines")
    update = {"target": "sm90", "runtime": "TensorRT", "version": TENSORRT.version}
    EngineFacts.read(folder).model_copy(update=update).write(folder / "engine.json")
    with pytest.raises(UserError, match=r"decoder\.engine is no plan of TensorRT: build the engines again"):
        OnnxSession(folder)
    for engine in folder.glob("*.engine"):
        engine.write_bytes(b"ftrt" + bytes(100))
    with pytest.raises(UserError, match="execution provider TensorrtExecutionProvider: expected CPU"):
        OnnxSession(folder)


@pytest.mark.parametrize(
    ("document", "message"),
    [(None, "engine.json is missing"), ("{}", "target: Field required"), ("[", "the document: Invalid JSON")],
)
def test_broken_facts_are_named(tmp_path: Path, document: str | None, message: str) -> None:
    if document is not None:
        (tmp_path / "engine.json").write_text(document)
    with pytest.raises(UserError, match=message):
        EngineFacts.read(tmp_path)


def test_a_missing_compiler_is_one_line(
    networks: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(
        UserError, match=r"TensorRT for RTX is not installed \(.*\): pip install tensorrt-rtx"
    ):
        compile_artifact(networks["int4"], tmp_path / "out", "sm89", SMALL)


def test_plain_tensorrt_that_is_not_there_is_one_line(
    networks: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the right GPU: no package, then a package without its library."""
    monkeypatch.setattr("engines.tensorrt.engines.find_gpu", lambda: H200)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        UserError, match=r"TensorRT is not installed \(.*tensorrt.*\): pip install tensorrt-cu13"
    ):
        compile_artifact(networks["int4"], tmp_path / "out", "sm90", SMALL)
    monkeypatch.delitem(sys.modules, "tensorrt")
    (tmp_path / "tensorrt.py").write_text("import ctypes; ctypes.CDLL('libnvinfer.so.11')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"TensorRT is not installed \(libnvinfer.so.11: cannot open shared"):
        compile_artifact(networks["int4"], tmp_path / "out", "sm90", SMALL)
    (tmp_path / "tensorrt.py").write_text("__version__ = '11.4.0.106'")
    importlib.invalidate_caches()
    another = (
        "TensorRT is 11.4.0.106 here, onnxruntime runs plans of 10.16.1.11: pip install tensorrt-cu13==10"
    )
    with pytest.raises(UserError, match=another):
        compile_artifact(networks["int4"], tmp_path / "out", "sm90", SMALL)
    assert not (tmp_path / "out").exists()


def test_a_missing_provider_is_one_line(engines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    monkeypatch.setattr("engines.onnx_session.find_gpu", lambda: ADA)
    with pytest.raises(UserError, match="run by a provider that is not installed: pip install"):
        OnnxSession(engines)


def test_a_build_for_a_gpu_that_must_be_here_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--out", str(tmp_path / "out"), "--set", "variants=[fp16, trt-fp16-sm90]"]
    for command in ("plan", "all"):
        assert build([command, *arguments]) == 1
        assert "engines for sm90 (H100, H200) are compiled by TensorRT on that" in capsys.readouterr().err
    assert not list(tmp_path.rglob("manifest.json"))


def test_command_line(micro_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "engines"
    arguments = ["tensorrt", str(micro_checkpoint), "--target", "sm120", "-o", str(out), "--context", "64"]
    assert main(arguments) == 0
    assert "decoder.onnx: " in capsys.readouterr().out
    assert EngineFacts.read(out).context == 64
    assert [path.name for path in tmp_path.iterdir()] == ["engines"]  # nothing else is left behind
    assert main(["run", str(out), "--prompt", "hi"]) == 1
    assert "engines for sm120: this machine has no NVIDIA GPU" in capsys.readouterr().err
    assert main([*arguments[:5], str(tmp_path / "no"), "--context", "-1"]) in (1, 2)
    elsewhere = ["tensorrt", str(micro_checkpoint), "-o", str(tmp_path / "no"), "--target"]
    assert main([*elsewhere, "sm90"]) == 1
    assert "compiled by TensorRT on that very GPU, here is no NVIDIA GPU" in capsys.readouterr().err
    assert main([*elsewhere, "sm89", "--precision", "nvfp4"]) == 1
    assert "no products with nvfp4 weights: found on sm100, sm120" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
