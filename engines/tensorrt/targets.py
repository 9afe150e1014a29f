"""The GPUs an engine can be built for, what they multiply in, and which TensorRT compiles for them."""

from __future__ import annotations

from dataclasses import dataclass

from engines.device import Gpu
from engines.engine_files import RTX, TENSORRT, Runtime
from engines.errors import UserError

FP16, INT4, FP8, NVFP4 = "fp16", "int4", "fp8", "nvfp4"  # what a decoder's weights are kept in


@dataclass(frozen=True)
class Target:
    """A compute capability, and the weights that its TensorRT multiplies without widening them in memory."""

    name: str
    gpus: str
    weights: tuple[str, ...]
    runtime: Runtime = RTX


TARGETS = {
    target.name: target
    for target in (
        Target("sm75", "RTX 20, T4", (FP16,)),
        Target("sm80", "A100", (FP16, INT4), TENSORRT),
        Target("sm86", "RTX 30, A10, A40", (FP16, INT4)),
        Target("sm89", "RTX 40, L4, L40", (FP16, INT4, FP8)),
        Target("sm90", "H100, H200", (FP16, INT4, FP8), TENSORRT),
        Target("sm100", "B200", (FP16, INT4, FP8, NVFP4), TENSORRT),
        Target("sm120", "RTX 50", (FP16, INT4, FP8, NVFP4)),
    )
}


def find_target(name: str, weights: str, gpu: Gpu | None) -> Target:
    """The target of that name; UserError when there is none, or none that can be built for here.

    weights: what the decoder's are kept in. gpu: this machine's. TensorRT for RTX builds without one; plain
    TensorRT times its kernels on the GPU that they are for.
    """
    target = TARGETS.get(name)
    if target is None:
        raise UserError(f"target {name}: expected one of {', '.join(TARGETS)}")
    if weights not in target.weights:
        able = [other.name for other in TARGETS.values() if weights in other.weights]
        raise UserError(
            f"{name} ({target.gpus}) has no products with {weights} weights: found on {', '.join(able)}; "
            f"build engines of {' or '.join(target.weights)} for it"
        )
    if target.runtime is TENSORRT and (gpu is None or gpu.architecture != name):
        found = f"{gpu.name} ({gpu.architecture})" if gpu else "no NVIDIA GPU"
        raise UserError(
            f"engines for {name} ({target.gpus}) are compiled by TensorRT on that very GPU, here is {found}: "
            "run this on a machine that has one"
        )
    return target
