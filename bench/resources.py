"""What a variant takes: bytes on disk, and the peak memory of a process that fills its context."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engines.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DECODED = 4  # the last tokens of the context are decoded, as decoding may allocate too


class Memory(BaseModel):
    """Peak resident memory of a fresh process."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    context: int = Field(description="Tokens per sequence, prompt and answer.")
    batch: int = Field(description="Sequences at once.")
    peak_memory_bytes: int = Field(description="Highest resident memory of the whole process.")
    before_loading_bytes: int = Field(
        description="The same before the model was opened: interpreter and libraries."
    )


def peak_memory(directory: Path, *, context: int, batch: int) -> Memory:
    """Opens a checkpoint or artifact in a fresh process, prefills and decodes `context` tokens x `batch`.

    Raises UserError if the process fails, is killed, or the model's context is shorter.
    """
    command = [
        sys.executable,
        "-m",
        "bench.resources",
        str(directory),
        f"--context={context}",
        f"--batch={batch}",
    ]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    conditions = f"{directory} at context {context} x batch {batch}"
    if done.returncode < 0:
        raise UserError(
            f"{conditions}: killed by signal {-done.returncode}, likely out of memory; ask for less"
        )
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else done.stderr.strip().splitlines()
    last = lines[-1] if lines else f"no output, exit code {done.returncode}"
    if done.returncode:
        raise UserError(f"{conditions}: {last.removeprefix('error: ')}")
    try:
        return Memory.model_validate_json(last)
    except ValidationError:
        raise UserError(f"{conditions}: expected a measurement, found {last[:80]!r}") from None


def disk_bytes(directory: Path) -> int:
    """Bytes of all files below a folder, each inode once: a hard link takes no space of its own."""
    files = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            status = (Path(folder) / name).stat()
            files[status.st_dev, status.st_ino] = status.st_size
    if not files:
        raise UserError(f"{directory} holds no files; expected a checkpoint or artifact")
    return sum(files.values())


def human_size(size: float) -> str:
    """Decimal units, as limits are stated: 6 GB is 6,000,000,000 bytes."""
    units = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
    scale, unit = next(((s, u) for s, u in units if abs(size) >= 0.9995 * s), (1.0, "B"))
    return f"{size / scale:.3g} {unit}"


def fill(directory: Path, context: int, batch: int) -> Memory:
    """The measurement itself, to be made in a process of its own."""
    from engines.config import ModelConfig
    from engines.processor import Inputs
    from engines.session import open_session

    if context <= DECODED or batch < 1:
        raise UserError(
            f"context {context}, batch {batch}: expected more than {DECODED} tokens and a sequence"
        )
    longest = ModelConfig.load(directory).text.max_position_embeddings
    if context > longest:
        raise UserError(f"a context of {context} tokens is beyond the model's {longest}; set a shorter one")
    before = resident_peak()
    session = open_session(directory)
    length = context - DECODED
    positions = np.tile(np.arange(length, dtype=np.int64), (3, 1))
    prompt = Inputs(np.zeros(length, np.int64), positions, (), length)  # which text it is does not matter
    logits, cache = session.prefill([prompt] * batch, capacity=context)
    tokens = logits[:, -1].argmax(axis=-1)
    for _ in range(DECODED):
        tokens = session.decode(tokens, cache).argmax(axis=-1)
    return Memory(
        context=context, batch=batch, peak_memory_bytes=resident_peak(), before_loading_bytes=before
    )


def resident_peak() -> int:
    """Highest resident memory of this process in bytes.

    Linux's VmHWM begins at exec; ru_maxrss, used elsewhere, would begin at what the parent process held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    """Child of `peak_memory`: one line of JSON on stdout, or one line of error on stderr."""
    parser = argparse.ArgumentParser(prog="python -m bench.resources", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    options = parser.parse_args()
    try:
        print(fill(options.directory, options.context, options.batch).model_dump_json())
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        print(f"error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
