"""OpenVINO's text/ from the Qwen3 checkpoint, vlm/ from the whole one: symmetric INT4 in groups of 128.

The vision tower is compressed to 8 bits, as the exporter does by default.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

WEIGHTS = ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0")


def convert(text: Path, checkpoint: Path, out: Path) -> None:
    """Export both; the whole model is for its vision tower only, so that its failure is no failure."""
    # Beside a torch for CPUs, a torchvision built for CUDA loads no operators, yet asks for two of them.
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        signature = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(signature)  # type: ignore[no-untyped-call]
    _export("text-generation-with-past", text, out / "text")
    try:
        _export("image-text-to-text", checkpoint, out / "vlm")
    except Exception as error:
        print(f"the whole model cannot be exported: {error}", file=sys.stderr)


def _export(task: str, model: Path, out: Path) -> None:
    from optimum.commands.optimum_cli import main

    sys.argv = [
        "optimum-cli",
        "export",
        "openvino",
        *WEIGHTS,
        "--task",
        task,
        "--model",
        str(model),
        str(out),
    ]
    main()


if __name__ == "__main__":
    convert(*map(Path, sys.argv[1:4]))
