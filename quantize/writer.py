"""Writes a quantised checkpoint in one of the standard layouts; equal weights give equal bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from engines.artifact import write_json
from engines.checkpoint import SIDE_FILES, SINGLE, Checkpoint
from engines.config import read_json
from engines.int4 import Int4
from engines.int8 import Int8
from engines.packing import to_autogptq, to_awq, to_compressed_tensors
from engines.safetensors import stream_safetensors

Array = NDArray[Any]

PACKINGS: dict[str, Callable[[Any], dict[str, Array]]] = {
    "compressed-tensors": to_compressed_tensors,
    "gptq": to_autogptq,
    "awq": to_awq,
}
FORMATS = tuple(PACKINGS)


def quantization_config(
    layout: str, group_size: int, damping: float, eight_bit: Sequence[int] = ()
) -> dict[str, Any]:
    """What config.json says of the weights, in the spelling of the layout's own tool.

    eight_bit: decoder layers in 8 bits, which only compressed-tensors has.
    """
    if layout == "gptq":
        return {
            "quant_method": "gptq",
            "bits": 4,
            "group_size": group_size,
            "sym": True,
            "desc_act": False,  # static groups: columns are stored in their own order
            "damp_percent": damping,
            "checkpoint_format": "gptq",
            "lm_head": False,
            "dynamic": {"-:.*visual.*": {}},
        }
    if layout == "awq":
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group_size,
            "zero_point": True,  # stored, always 8
            "version": "gemm",
            "modules_to_not_convert": ["visual"],
        }

    def entry(bits: int, target: str) -> dict[str, Any]:
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": group_size,
            "dynamic": False,
        }
        return {
            "targets": [target],
            "weights": weights,
            "input_activations": None,
            "output_activations": None,
        }

    # What names a layer goes before what names a class.
    layers = "|".join(map(str, eight_bit))
    mixed = {"group_1": entry(8, rf"re:.*\.layers\.({layers})\..*_proj")} if eight_bit else {}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": entry(4, "Linear"), **mixed},
        "ignore": ["lm_head", "re:.*visual.*"],
    }


def write_checkpoint(
    source: Checkpoint,
    out: Path,
    *,
    layers: Iterable[tuple[Mapping[str, Int4 | Int8], Mapping[str, Array]]],
    config: dict[str, Any],
    documents: Mapping[str, Any],
) -> None:
    """Writes the folder `out` in one step: the source with its layers' linears packed.

    Args:
        layers: for each, 4- or 8-bit weights by the name of their linear, and tensors to replace.
        config: the quantization_config.
        documents: further JSON files by name.

    """
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {name: source.tensor(name) for name in source.names()}
    for linears, replaced in layers:
        tensors |= replaced
        for name, weight in linears.items():
            del tensors[f"{name}.weight"]
            packed = PACKINGS[config["quant_method"]](weight)
            tensors |= {f"{name}.{part}": array for part, array in packed.items()}
    write_safetensors(partial / SINGLE, tensors)
    for name in SIDE_FILES:
        if (source.path / name).is_file():
            shutil.copyfile(source.path / name, partial / name)
    write_json(
        partial / "config.json", read_json(source.path / "config.json") | {"quantization_config": config}
    )
    for name, document in documents.items():
        write_json(partial / name, document)
    partial.rename(out)


def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Writes arrays into a safetensors file, which appears under its name when it is complete."""
    layout = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    stream_safetensors(path, layout, lambda name: [tensors[name]])
