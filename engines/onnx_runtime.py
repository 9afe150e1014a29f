"""Opens ONNX graphs in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from engines.errors import UserError

CPU = "CPUExecutionProvider"


def releasing() -> Any:
    """Options of a run that gives its working memory back: a long prefill's would never be needed again."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def check_file(path: Path) -> None:
    """UserError when a file of an artifact is missing."""
    if not path.is_file():
        raise UserError(f"{path} is missing: export the checkpoint again")


def open_model(path: Path, threads: int | None, providers: Sequence[str]) -> Any:
    """An onnxruntime.InferenceSession over `path`; UserError when it is missing, broken or incomplete.

    threads: by default one for each core.
    """
    available = ort.get_available_providers()
    if missing := [name for name in providers if name not in available]:
        raise UserError(f"execution provider {missing[0]}: this onnxruntime has {', '.join(available)}")
    check_file(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A thread waits for work by spinning, which bridges the gap between two operators but takes the core from
    # other sessions. 0.1 ms decodes about as fast as the default, and up to twice as fast on busy cores.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    try:
        # Folding the casts of 16-bit weights keeps them in fp32: twice the memory, and seconds of loading.
        folding = ["ConstantFolding"]
        return ort.InferenceSession(
            str(path), options, providers=list(providers), disabled_optimizers=folding
        )
    except Exception as error:  # onnxruntime's errors share no narrower base
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} cannot be loaded, export the checkpoint again: {reason}") from None
