"""`quantize_checkpoint` for a process that holds no torch until then: libraries come with the call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.memory import check_address_space


def quantize(checkpoint: Path, out: Path, **options: Any) -> dict[str, Any]:
    """See quantize.pipeline.quantize_checkpoint. UserError, too, where torch would find no room."""
    check_address_space()
    from quantize.pipeline import quantize_checkpoint

    return quantize_checkpoint(checkpoint, out, **options)
