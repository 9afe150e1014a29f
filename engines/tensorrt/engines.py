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
from engines.device import find_gpu
from engines.engine_files import CUDA, ENGINE_FACTS, EngineFacts
from engines.errors import UserError
from engines.onnx_files import DECODER, EMBEDDING, STEP, VISION
from engines.tensorrt.compiler import Range, Ranges, compile_graph, pinned
from engines.tensorrt.plan import Plan
from engines.tensorrt.targets import FP8, FP16, INT4, NVFP4, Target, find_target


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
# Weights by the type they have in a graph and, as the compiler prints it, in a plan.
NARROW = {
    NVFP4: (TensorProto.FLOAT4E2M1, "FP4E2M1"),
    FP8: (TensorProto.FLOAT8E4M3FN, "FP8"),
    INT4: (TensorProto.INT4, "Int4"),
}
PRODUCTS = range(4, 8)  # in a layer: seven, of which q, k and v may be one and gate and up another
KERNEL_BYTES = 16e6  # of an engine, besides its weights


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
    weights = kept_in(onnx.load(network / DECODER, load_external_data=False))
    chosen, plans = find_target(target, weights, find_gpu()), {}
    version = chosen.runtime.load().__version__
    out.mkdir(parents=True)
    for name, sizes in ranges(limits).items():
        if name == STEP and weights == FP16:
            continue
        source = network / (DECODER if name == STEP else name)
        engine = out / Path(name).with_suffix(".engine")
        plans[name] = compile_graph(source, engine, chosen, sizes)
        graph = pinned(source, sizes)
        check_plan(plans[name], name, graph)
        check_size(engine, graph)
        _write_stand_in(graph, out / name, engine, chosen)
    for name in (EMBEDDING, *SIDE_FILES):
        if (network / name).is_file():
            shutil.copyfile(network / name, out / name)
    facts = EngineFacts(
        target=chosen.name, runtime=chosen.runtime.name, version=version, cuda=CUDA, **asdict(limits)
    )
    facts.write(out / ENGINE_FACTS)
    return plans


def kept_in(model: onnx.ModelProto) -> str:
    """What a graph's weights are kept in: fp16, int4, fp8 or nvfp4, whose scales are fp8."""
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    return next((name for name, (kind, _) in NARROW.items() if kind in kinds), FP16)


def narrow_weights(model: onnx.ModelProto) -> int:
    """How many weights a graph has in 4 or 8 bits."""
    weights = kept_in(model)
    if weights == FP16:
        return 0
    tensors = (tensor for tensor in model.graph.initializer if tensor.data_type == NARROW[weights][0])
    return sum(math.prod(tensor.dims) for tensor in tensors)


def check_plan(plan: Plan, name: str, model: onnx.ModelProto) -> None:
    """UserError unless attention and the 4- or 8-bit weights were compiled into what makes them fast."""
    layers = sum(node.op_type == "Attention" for node in model.graph.node)
    if plan.attention_kernels != layers:
        raise UserError(
            f"{name}: the engine has {plan.attention_kernels} attention kernels, expected {layers}"
        )
    weights = kept_in(model)
    if weights == FP16:
        return
    kind = NARROW[weights][1]
    kept, expected = plan.constants[kind], narrow_weights(model)
    if kept != expected:
        raise UserError(f"{name}: the engine holds {kept} weights in {weights}, expected {expected}")
    products = plan.products(kind)
    if products % layers or products // layers not in PRODUCTS:
        raise UserError(
            f"{name}: the engine has {products} products with {weights} weights, expected "
            f"{PRODUCTS.start} to {PRODUCTS.stop - 1} for each of its {layers} layers"
        )


def check_size(engine: Path, model: onnx.ModelProto) -> None:
    """UserError unless an engine is about as large as the weights of its graph."""
    size, weights = engine.stat().st_size, weight_bytes(model)
    if not 0.95 * weights < size < 1.1 * weights + KERNEL_BYTES:
        raise UserError(f"{engine.name}: the engine has {size} bytes, its graph's weights {weights}")


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of a graph's weights, wherever they are stored."""
    return sum(
        int(entry.value)
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )


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
        source=target.runtime.provider,
    )
    stand_in = helper.make_graph([node], path.stem, graph.input, graph.output)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(
        helper.make_model(stand_in, opset_imports=opsets, ir_version=11).SerializeToString(deterministic=True)
    )
