"""The GPUs an engine can be built for."""

from __future__ import annotations

from dataclasses import dataclass

from engines.errors import UserError


@dataclass(frozen=True)
class Target:
    """A compute capability, and what TensorRT for RTX can do there when it builds without the device."""

    name: str
    gpus: str
    rtx: bool = True  # TensorRT for RTX builds for it on any machine; else TensorRT, on that very GPU
    int4: bool = True


TARGETS = {
    target.name: target
    for target in (
        Target("sm75", "RTX 20, T4", int4=False),
        Target("sm80", "A100", rtx=False),
        Target("sm86", "RTX 30, A10, A40"),
        Target("sm89", "RTX 40, L4, L40"),
        Target("sm90", "H100, H200", rtx=False),
        Target("sm100", "B200", rtx=False),
        Target("sm120", "RTX 50"),
    )
}


def find_target(name: str, *, int4: bool) -> Target:
    """The target of that name; UserError when there is none, or none that an engine can be built for here."""
    target = TARGETS.get(name)
    if target is None:
        raise UserError(f"target {name}: expected one of {', '.join(TARGETS)}")
    if not target.rtx:
        raise UserError(
            f"{name} ({target.gpus}) takes TensorRT, which builds on that GPU alone; TensorRT for RTX, which "
            f"builds anywhere, has {', '.join(other.name for other in TARGETS.values() if other.rtx)}"
        )
    if int4 and not target.int4:
        raise UserError(
            f"{name} ({target.gpus}) has no 4-bit products: build its engines from the checkpoint"
        )
    return target
