"""Checkpoint in, quantised checkpoint out, layer by layer; each linear sees what those before it now pass on.

After every layer its codes and the hidden states it passes on are kept in the work folder. A run that was
killed goes on from there and ends with the same bytes.

"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from engines.artifact import canonical_digest, hash_file
from engines.checkpoint import Checkpoint
from engines.errors import UserError
from engines.int4 import Int4
from engines.int8 import Int8
from engines.processor import Processor
from quantize.calibration import Sample, prepare, read_samples, receipt
from quantize.capture import capture, to_torch
from quantize.layers import LINEARS, Decoder, Tensors, add_deepstack, layer_prefix, load_layer
from quantize.methods import Quantized
from quantize.rtn import rtn8
from quantize.sensitivity import Mixture, mixture, sample
from quantize.work import Work
from quantize.writer import FORMATS, Array, quantization_config, write_checkpoint

VERSION = 3  # of the algorithms; part of the key under which unfinished work is found again
METHODS = ("rtn", "gptq", "awq")
GROUP_SIZES = (32, 64, 128)
Progress = Callable[[str, int, int], None]


def quantize_checkpoint(
    checkpoint: Path,
    out: Path,
    *,
    method: str,
    group_size: int,
    calibration: Path,
    work_dir: Path,
    format: str = "compressed-tensors",
    damping: float = 0.01,
    sensitivity: bool = False,
    max_kl: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantises the decoder's linears to symmetric 4 bits and writes a standard checkpoint.

    Args:
        out: a folder that does not exist yet.
        method: "gptq", "awq" or "rtn".
        group_size: columns that share a scale: 32, 64 or 128.
        calibration: JSON lines as `quantize.calibration` reads them.
        work_dir: holds unfinished work, under a key of everything the result depends on; emptied at the end.
        format: "compressed-tensors", "gptq" (AutoGPTQ) or "awq" (AWQ GEMM).
        damping: GPTQ's share of the mean diagonal of the Hessian added to it.
        sensitivity: whether to measure what each layer costs (quantize.sensitivity).
        max_kl: what all may cost together, in nats; the worst layers are kept in 8 bits to stay below.
        progress: called with the name of the step, how many of its units are done, and of how many.

    Returns the content of quantization.json, which with the receipt calibration.json is written beside the
    weights. Raises UserError when `out` exists, an option or a layer's shape does not fit, or the calibration
    set is bad.

    """
    report = progress or (lambda step, done, total: None)
    if Path(out).exists():
        raise UserError(f"{out} already exists: choose another output, or remove it first")
    source = Checkpoint.open(checkpoint)
    _check(source, method, group_size, format)
    if max_kl is not None and format != "compressed-tensors":
        raise UserError(f"layers in 8 bits beside 4: the layout {format} has none, use compressed-tensors")
    settings = {"method": method, "group_size": group_size, "damping": damping, "version": VERSION}
    samples = read_samples(calibration)
    inputs = {path.name: hash_file(path).sha256 for path in source.files()}
    inputs["calibration"] = hash_file(Path(calibration)).sha256
    work_dir = Path(work_dir)
    work_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work_dir / "lock", timeout=0):
            work = Work(work_dir / canonical_digest(settings | inputs).removeprefix("sha256:")[:16])
            seen = _quantize_layers(source, work, Path(calibration), samples, settings, report)
            summary = _summary(settings, format, source, work, seen)
            kept: tuple[int, ...] = ()
            if sensitivity or max_kl is not None:
                found = _mixture(source, work, samples, group_size, max_kl, report)
                kept, summary = found.eight_bit, summary | asdict(found)
            report("write", 0, 1)
            write_checkpoint(
                source,
                Path(out),
                layers=(
                    (eight_bits(source, index, group_size), {}) if index in kept else work.layer(index)
                    for index in range(source.config.text.num_hidden_layers)
                ),
                config=quantization_config(format, group_size, damping, kept),
                documents={"quantization.json": summary, "calibration.json": seen},
            )
            report("write", 1, 1)
            shutil.rmtree(work.path)
    except Timeout:
        raise UserError(f"another run is using {work_dir}: wait for it to end") from None
    return summary


def _check(source: Checkpoint, method: str, group_size: int, layout: str) -> None:
    for found, allowed in ((method, METHODS), (group_size, GROUP_SIZES), (layout, FORMATS)):
        if found not in allowed:
            raise UserError(f"found {found!r}: expected one of {', '.join(map(str, allowed))}")
    if source.quantization:
        raise UserError(f"{source.path} is quantised already: start from the 16-bit checkpoint")
    for name in LINEARS:
        rows, columns = source.tensor(f"{layer_prefix(0)}{name}.weight").shape
        if columns % group_size:
            fitting = [str(size) for size in GROUP_SIZES if columns % size == 0] or ["none"]
            raise UserError(
                f"{name} has {columns} input columns, which do not divide into groups of {group_size}: "
                f"group sizes that fit: {', '.join(fitting)}"
            )
        if rows % 8 and layout != "compressed-tensors":
            raise UserError(
                f"{name} has {rows} output rows, not a multiple of 8 as the layout {layout} needs: "
                "use compressed-tensors"
            )


def _quantize_layers(
    source: Checkpoint,
    work: Work,
    calibration: Path,
    samples: list[Sample],
    settings: dict[str, Any],
    report: Progress,
) -> dict[str, Any]:
    """Quantises the layers that are not in the work folder yet; returns the calibration receipt."""
    layers = source.config.text.num_hidden_layers
    done = work.layers_done(layers)
    if done is None:
        prompts = prepare(samples, Processor.load(source.path))
        activations = capture(source, prompts, lambda count: report("calibrate", count, len(prompts)))
        work.start(activations, receipt(calibration, samples, prompts, len(activations.visual)))
        done = 0
    else:
        activations = work.activations(done)
    report("quantize", done, layers)
    decoder = Decoder(source)
    for index in range(done, layers):
        tensors = load_layer(source, index)
        layer = Quantized(tensors, settings["method"], settings["group_size"], settings["damping"])
        hidden = add_deepstack(decoder.run(tensors, activations, layer.replace), activations, index)
        activations = activations.entering(hidden)
        work.finish_layer(index, layer.linears, layer.changed, layer.errors, hidden)
        report("quantize", index + 1, layers)
    return work.receipt()


def _mixture(
    source: Checkpoint,
    work: Work,
    samples: list[Sample],
    group_size: int,
    limit: float | None,
    report: Progress,
) -> Mixture:
    """What the finished layers cost, and which to keep in 8 bits."""

    def rounded(index: int, linears: Mapping[str, Int4 | Int8], changed: Mapping[str, Array]) -> Tensors:
        names = layer_prefix(index)
        weights = {f"{name}.weight": torch.from_numpy(found.dequantize()) for name, found in linears.items()}
        weights |= {name: to_torch(array) for name, array in changed.items()}
        return load_layer(source, index) | {name.removeprefix(names): x for name, x in weights.items()}

    prompts = sample(prepare(samples, Processor.load(source.path)))
    return mixture(
        source,
        prompts,
        lambda index: rounded(index, *work.layer(index)),
        lambda index: rounded(index, eight_bits(source, index, group_size), {}),
        limit,
        lambda done, total: report("sensitivity", done, total),
    )


def eight_bits(source: Checkpoint, index: int, group_size: int) -> dict[str, Int8]:
    """A layer's linears in 8 bits, by full name."""
    tensors = load_layer(source, index)
    return {
        layer_prefix(index) + name: rtn8(tensors[f"{name}.weight"].float(), group_size) for name in LINEARS
    }


def _summary(
    settings: dict[str, Any], layout: str, source: Checkpoint, work: Work, seen: dict[str, Any]
) -> dict[str, Any]:
    layers = [work.errors(index) for index in range(source.config.text.num_hidden_layers)]

    def mean(key: str) -> float:
        return float(f"{np.mean([linear[key] for layer in layers for linear in layer.values()]):.4g}")

    return {
        "method": settings["method"],
        "bits": 4,
        "group_size": settings["group_size"],
        "symmetric": True,
        "format": layout,
        "damping": settings["damping"] if settings["method"] != "rtn" else None,
        "components": [f"model.language_model.layers.*.{name}" for name in LINEARS],
        "calibration": {name: value for name, value in seen.items() if name != "items"},
        "error": mean("error"),
        "rtn_error": mean("rtn_error"),
        "layers": layers,
    }
