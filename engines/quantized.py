"""Recognises and reads 4-bit linears in the three layouts checkpoints are published in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.errors import UserError
from engines.int4 import Int4
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

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Quantization:
        """UserError for anything but weight-only symmetric 4-bit integers in one of the three layouts."""
        method = data.get("quant_method")
        if method == "compressed-tensors":
            return cls(method, _compressed_tensors_group(data))
        if method not in PARTS:
            raise UserError(
                f"quantization_config: quant_method {method!r}, expected one of {', '.join(PARTS)}"
            )
        if data.get("bits") != 4:
            raise UserError(f"quantization_config: {data.get('bits')} bits, only 4 are supported")
        if method == "gptq":
            checkpoint_format = data.get("checkpoint_format", "gptq")
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
        """Whether the checkpoint stores the linear `prefix` in 4 bits."""
        return f"{prefix}.{PARTS[self.method][0]}" in names

    def shape(self, tensors: Mapping[str, Array], prefix: str) -> tuple[int, int]:
        """(outputs, inputs) of the linear `prefix`, from the packed tensor's shape alone."""
        packed = self._parts(tensors, prefix)[PARTS[self.method][0]]
        rows, columns = packed.shape if packed.ndim == 2 else (0, 0)
        shapes = {
            "compressed-tensors": (rows, columns * 8),
            "gptq": (columns, rows * 8),
            "awq": (columns * 8, rows),
        }
        return shapes[self.method]

    def read(self, tensors: Mapping[str, Array], prefix: str) -> Int4:
        """The linear `prefix` in canonical form; UserError naming it if that cannot be exact."""
        parts = self._parts(tensors, prefix)
        try:
            if self.method == "gptq":
                weight = from_autogptq(parts, self.checkpoint_format)
            else:
                weight = {"awq": from_awq, "compressed-tensors": from_compressed_tensors}[self.method](parts)
        except ValueError as error:
            raise UserError(f"{prefix}: {error}") from None
        if weight.group_size != (self.group_size or weight.shape[1]):
            raise UserError(
                f"{prefix} has groups of {weight.group_size}, quantization_config says {self.group_size}"
            )
        return weight

    def _parts(self, tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
        parts = {
            part: tensors[f"{prefix}.{part}"] for part in PARTS[self.method] if f"{prefix}.{part}" in tensors
        }
        if missing := [part for part in PARTS[self.method][:3] if part not in parts]:
            raise UserError(f"{prefix}.{missing[0]} is missing from the checkpoint")
        return parts


def _compressed_tensors_group(data: dict[str, Any]) -> int | None:
    if data.get("format") != "pack-quantized":
        raise UserError(f"quantization_config: format {data.get('format')!r}, expected 'pack-quantized'")
    groups = data.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise UserError("quantization_config: expected exactly one entry in config_groups")
    (group,) = groups.values()
    weights = group.get("weights") or {}
    found = (weights.get("num_bits"), weights.get("type", "int"), weights.get("symmetric", True))
    if found != (4, "int", True):
        raise UserError(
            f"quantization_config: weights of {found[0]} bits, type {found[1]}, symmetric={found[2]}: "
            "only symmetric 4-bit integers are supported"
        )
    if group.get("input_activations") or group.get("output_activations") or data.get("kv_cache_scheme"):
        raise UserError(
            "quantization_config quantizes activations or the KV cache: only weight-only is supported"
        )
    return _group_size(weights.get("group_size"))


def _group_size(value: Any) -> int | None:
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or value <= 0:
        raise UserError(
            f"quantization_config: group_size {value!r}, expected a positive number, or -1 for whole rows"
        )
    return value
