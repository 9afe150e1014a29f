"""Recognises and reads 4-bit linears in the three layouts checkpoints are published in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.errors import UserError
from engines.int4 import Int4
from engines.int8 import Int8
from engines.packing import GPTQ_STORED_ZERO, Array, from_autogptq, from_awq, from_compressed_tensors

PARTS = {
    "compressed-tensors": (
        "weight_packed",
        "weight_scale",
        "weight_shape",
        "weight_zero_point",
        "weight_g_idx",
    ),
    "gptq": ("qweight", "scales", "qzeros", "g_idx"),
    "awq": ("qweight", "scales", "qzeros"),
}


@dataclass(frozen=True)
class Quantization:
    """What config.json's quantization_config says. group_size is None where a group is a whole row."""

    method: str
    group_size: int | None
    checkpoint_format: str = "gptq"
    eight_bit: tuple[str, ...] = ()  # regular expressions of the linears that have 8 bits instead of 4

    @classmethod
    def parse(cls, data: Any) -> Quantization:
        """UserError for anything but weight-only symmetric 4-bit integers in one of the three layouts; of
        compressed-tensors some linears may have 8 bits."""
        if not isinstance(data, dict):
            raise UserError(f"quantization_config is {data!r:.40}, expected an object")
        method = data.get("quant_method")
        if method == "compressed-tensors":
            group_size, eight_bit = _compressed_tensors_groups(data)
            return cls(method, group_size, eight_bit=eight_bit)
        if not isinstance(method, str) or method not in PARTS:
            raise UserError(
                f"quantization_config: quant_method {method!r}, expected one of {', '.join(PARTS)}"
            )
        if data.get("bits") != 4:
            raise UserError(f"quantization_config: {data.get('bits')} bits, only 4 are supported")
        if method == "gptq":
            checkpoint_format = str(data.get("checkpoint_format", "gptq"))
            if not data.get("sym", True) or checkpoint_format not in GPTQ_STORED_ZERO:
                raise UserError(
                    f"quantization_config: sym={data.get('sym')}, checkpoint_format={checkpoint_format!r}: "
                    f"only symmetric weights in the formats {', '.join(GPTQ_STORED_ZERO)} are supported"
                )
            return cls(method, _group_size(data.get("group_size")), checkpoint_format)
        if str(data.get("version", "gemm")).lower() != "gemm":
            raise UserError(f"quantization_config: AWQ version {data['version']!r}, only GEMM is supported")
        return cls(method, _group_size(data.get("group_size")))

    def holds(self, names: Mapping[str, object], prefix: str) -> bool:
        """Whether the checkpoint stores the linear `prefix` in few bits."""
        return f"{prefix}.{PARTS[self.method][0]}" in names

    def bits(self, prefix: str) -> int:
        """Of the codes of the linear `prefix`, if it is stored in few."""
        return 8 if any(re.match(pattern, prefix) for pattern in self.eight_bit) else 4

    def shape(self, tensors: Mapping[str, Array], prefix: str) -> tuple[int, int]:
        """(outputs, inputs) of the linear `prefix`, from the packed tensor's shape alone."""
        packed = self._parts(tensors, prefix)[PARTS[self.method][0]]
        rows, columns = packed.shape if packed.ndim == 2 else (0, 0)
        shapes = {
            "compressed-tensors": (rows, columns * 32 // self.bits(prefix)),
            "gptq": (columns, rows * 8),
            "awq": (columns * 8, rows),
        }
        return shapes[self.method]

    def read(self, tensors: Mapping[str, Array], prefix: str) -> Int4 | Int8:
        """The linear `prefix` in canonical form; UserError naming it if that cannot be exact."""
        parts = self._parts(tensors, prefix)
        try:
            if self.method == "gptq":
                weight: Int4 | Int8 = from_autogptq(parts, self.checkpoint_format)
            elif self.method == "awq":
                weight = from_awq(parts)
            else:
                weight = from_compressed_tensors(parts)
        except ValueError as error:
            raise UserError(f"{prefix}: {error}") from None
        if weight.group_size != (self.group_size or weight.shape[1]):
            raise UserError(
                f"{prefix} has groups of {weight.group_size}, quantization_config says {self.group_size}"
            )
        if isinstance(weight, Int8) != (self.bits(prefix) == 8):
            raise UserError(f"{prefix} is not stored in the {self.bits(prefix)} bits of quantization_config")
        return weight

    def _parts(self, tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
        parts = {
            part: tensors[f"{prefix}.{part}"] for part in PARTS[self.method] if f"{prefix}.{part}" in tensors
        }
        if missing := [part for part in PARTS[self.method][:3] if part not in parts]:
            raise UserError(f"{prefix}.{missing[0]} is missing from the checkpoint")
        return parts


def _compressed_tensors_groups(data: dict[str, Any]) -> tuple[int | None, tuple[str, ...]]:
    """The columns of a group, and which linears have 8 bits: those an 8-bit entry names by re:PATTERN."""
    if data.get("format") != "pack-quantized":
        raise UserError(f"quantization_config: format {data.get('format')!r}, expected 'pack-quantized'")
    entries = data.get("config_groups")
    if not isinstance(entries, dict) or not entries:
        raise UserError("quantization_config: expected an entry in config_groups")
    if data.get("kv_cache_scheme"):
        raise UserError("quantization_config quantizes the KV cache: only weight-only is supported")
    sizes: dict[int, int | None] = {}
    eight_bit: tuple[str, ...] = ()
    for entry in entries.values():
        weights = entry.get("weights") if isinstance(entry, dict) else None
        if not isinstance(weights, dict):
            raise UserError("quantization_config: an entry of config_groups says nothing of weights")
        bits, kind = weights.get("num_bits"), weights.get("type", "int")
        symmetric = weights.get("symmetric", True)
        if bits not in (4, 8) or bits in sizes or kind != "int" or not symmetric:
            raise UserError(_unsupported(f"{bits} bits, type {kind}, symmetric={symmetric}"))
        if entry.get("input_activations") or entry.get("output_activations"):
            raise UserError("quantization_config quantizes activations: only weight-only is supported")
        sizes[bits] = _group_size(weights.get("group_size"))
        if bits == 8:
            targets = entry.get("targets") or ["nothing"]
            eight_bit = tuple(map(str, targets if isinstance(targets, list) else [targets]))
    if 4 not in sizes or len(set(sizes.values())) > 1:
        raise UserError(
            _unsupported(f"{', '.join(map(str, sizes))} bits in groups of {list(sizes.values())}")
        )
    if not all(target.startswith("re:") for target in eight_bit):
        raise UserError(f"quantization_config: 8 bits for {eight_bit}, expected re:PATTERN of linears' names")
    patterns = tuple(target.removeprefix("re:") for target in eight_bit)
    try:
        for pattern in patterns:
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(
            f"quantization_config: 8 bits for {eight_bit}, which is no pattern: {error}"
        ) from None
    return sizes[4], patterns


def _unsupported(found: str) -> str:
    return (
        f"quantization_config: weights of {found}: only symmetric 4-bit integers are supported, and 8-bit "
        "ones beside them in groups of the same size"
    )


def _group_size(value: Any) -> int | None:
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or value <= 0:
        raise UserError(
            f"quantization_config: group_size {value!r}, expected a positive number, or -1 for whole rows"
        )
    return value
