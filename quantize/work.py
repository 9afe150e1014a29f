"""What an unfinished run has done so far, kept on disk after every layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import torch

from engines.artifact import write_json
from engines.config import read_json
from engines.int4 import Int4
from engines.int8 import Int8
from engines.packing import from_compressed_tensors, to_compressed_tensors
from engines.safetensors import read_safetensors
from quantize.capture import Activations, to_torch
from quantize.layers import LINEARS, layer_prefix
from quantize.writer import Array, write_safetensors

PARTS = ("weight_packed", "weight_scale", "weight_shape")


@dataclass(frozen=True)
class Work:
    """The folder of an unfinished run.

    inputs.safetensors and receipt.json from the calibration set; for each finished layer its codes, the
    tensors it changed and its errors; hidden-NN.safetensors, the hidden states entering layer NN, is written
    last and the one before it removed, so that it alone says how far the run has come.

    """

    path: Path

    def layers_done(self, layers: int) -> int | None:
        """How many layers are finished; None before the calibration set has been captured."""
        return next((n for n in range(layers, -1, -1) if self._hidden(n).exists()), None)

    def start(self, activations: Activations, seen: dict[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        fixed = {
            "positions": activations.positions,
            "lengths": torch.tensor(activations.lengths),
            "visual": activations.visual,
            "deepstack": activations.deepstack,
        }
        write_safetensors(
            self.path / "inputs.safetensors", {name: value.numpy() for name, value in fixed.items()}
        )
        write_json(self.path / "receipt.json", seen)
        write_safetensors(self._hidden(0), {"hidden": activations.hidden.numpy()})

    def activations(self, done: int) -> Activations:
        fixed = {
            name: to_torch(array)
            for name, array in read_safetensors(self.path / "inputs.safetensors").items()
        }
        lengths = tuple(fixed.pop("lengths").tolist())
        hidden = to_torch(read_safetensors(self._hidden(done))["hidden"])
        return Activations(hidden=hidden, lengths=lengths, **fixed)

    def receipt(self) -> dict[str, Any]:
        return read_json(self.path / "receipt.json")

    def errors(self, index: int) -> dict[str, Any]:
        return read_json(self._layer(index).with_suffix(".json"))

    def finish_layer(
        self,
        index: int,
        linears: dict[str, Int4],
        changed: dict[str, torch.Tensor],
        errors: dict[str, Any],
        hidden: torch.Tensor,
    ) -> None:
        tensors = {name: _to_numpy(tensor) for name, tensor in changed.items()}
        for name, linear in linears.items():
            tensors |= {f"{name}.{part}": array for part, array in to_compressed_tensors(linear).items()}
        write_json(self._layer(index).with_suffix(".json"), errors)
        write_safetensors(self._layer(index), tensors)
        write_safetensors(self._hidden(index + 1), {"hidden": hidden.numpy()})
        self._hidden(index).unlink()

    def layer(self, index: int) -> tuple[dict[str, Int4 | Int8], dict[str, Array]]:
        """A finished layer's 4-bit linears and changed tensors, by full name."""
        tensors, prefix = read_safetensors(self._layer(index)), layer_prefix(index)
        linears = {}
        for name in LINEARS:
            parts = {part: tensors.pop(f"{name}.{part}") for part in PARTS}
            linears[prefix + name] = from_compressed_tensors(parts)
        return linears, {prefix + name: array for name, array in tensors.items()}

    def _hidden(self, index: int) -> Path:
        return self.path / f"hidden-{index:02}.safetensors"

    def _layer(self, index: int) -> Path:
        return self.path / f"layer-{index:02}.safetensors"


def _to_numpy(tensor: torch.Tensor) -> Array:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
