"""Compiles an ONNX artifact of standard operators into an artifact of TensorRT engines.

Every engine lies beside a graph of one node that stands for it, so that onnxruntime's execution provider
loads it and a session sees the same inputs and outputs as before (onnxruntime's EPContext design).
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, helper

from engines.checkpoint import SIDE_FILES
from engines.engine_files import ENGINE_FACTS, EngineFacts
from engines.errors import UserError
from engines.onnx_files import DECODER, EMBEDDING, STEP, VISION
from engines.tensorrt.compiler import Range, Ranges, compile_graph, load_compiler, pinned
from engines.tensorrt.plan import Plan
from engines.tensorrt.targets import Target, find_target


@dataclass(frozen=True)
class Limits:
    """The largest sizes an engine takes: tokens in the cache, sequences together, tokens in one pass of a
    prompt, patches of one image."""

    context: int = 4096
    batch: int = 1
    chunk: int = 512
    patches: int = 16384

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise UserError(f"engines for a {name} of {value}: expected 1 or more")


DEFAULT = Limits()
RUNTIME = "TensorRT for RTX"


def ranges(limits: Limits) -> dict[str, Ranges]:
    """The sizes of every free dimension, by the name of the graph's file."""
    batch, cache = Range(1, 1, limits.batch), Range(limits.context, limits.context, limits.context)
    most = min(limits.chunk, limits.context)
    one, chunk = Range(1, 1, 1), Range(1, most, most)
    patches = Range(min(16, limits.patches), min(1024, limits.patches), limits.patches)
    return {
        VISION: {"P": patches},
        DECODER: {"B": batch, "S": chunk, "R": Range(1, 1, limits.batch * most), "C": cache},
        STEP: {"B": batch, "S": one, "R": batch, "C": cache},
    }


def compile_artifact(network: Path, out: Path, target: str, limits: Limits = DEFAULT) -> dict[str, Plan]:
    """Write the engines of `network` for `target` into the new folder `out`; their plans by graph file.

    In 4 bits decoding gets an engine of its own. It reads the cache in place, which the engine for prompts
    first copies, but holds the decoder's weights a second time: in 16 bits that is too much for 6 GB.
    Raises UserError when a graph cannot be built, or is built into something else than it should be.
    """
    decoder = onnx.load(network / DECODER, load_external_data=False)
    int4 = int4_weights(decoder) > 0
    chosen, plans = find_target(target, int4=int4), {}
    out.mkdir(parents=True)
    for name, sizes in ranges(limits).items():
        if name == STEP and not int4:
            continue
        source = network / (DECODER if name == STEP else name)
        engine = out / Path(name).with_suffix(".engine")
        plans[name] = compile_graph(source, engine, chosen, sizes)
        graph = pinned(source, sizes)
        check_plan(plans[name], name, graph)
        _write_stand_in(graph, out / name, engine, chosen)
    for name in (EMBEDDING, *SIDE_FILES):
        if (network / name).is_file():
            shutil.copyfile(network / name, out / name)
    facts = EngineFacts(
        target=chosen.name, runtime=RUNTIME, version=load_compiler().__version__, **asdict(limits)
    )
    facts.write(out / ENGINE_FACTS)
    return plans


def int4_weights(model: onnx.ModelProto) -> int:
    """How many weights a graph has in 4 bits."""
    tensors = (tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT4)
    return sum(math.prod(tensor.dims) for tensor in tensors)


def check_plan(plan: Plan, name: str, model: onnx.ModelProto) -> None:
    """UserError unless attention and the 4-bit weights were compiled into what makes them fast."""
    attentions = sum(node.op_type == "Attention" for node in model.graph.node)
    if plan.attention_kernels != attentions:
        raise UserError(
            f"{name}: the engine has {plan.attention_kernels} attention kernels, expected {attentions}"
        )
    kept, expected = plan.constants["Int4"], int4_weights(model)
    if kept != expected:
        raise UserError(f"{name}: the engine holds {kept} weights in 4 bits, expected {expected}")


def _write_stand_in(model: onnx.ModelProto, path: Path, engine: Path, target: Target) -> None:
    graph = model.graph
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    node = helper.make_node(
        "EPContext",
        inputs,
        outputs,
        name=path.stem,
        domain="com.microsoft",
        main_context=0,
        embed_mode=0,
        ep_cache_context=engine.name,
        hardware_architecture=target.name.removeprefix("sm"),
        partition_name=path.stem,
        source="NvTensorRTRTXExecutionProvider",
    )
    stand_in = helper.make_graph([node], path.stem, graph.input, graph.output)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(
        helper.make_model(stand_in, opset_imports=opsets, ir_version=11).SerializeToString(deterministic=True)
    )
