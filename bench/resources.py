"""What a variant takes: bytes on disk, the peak memory of a process that answers at its full context, and its
memory from request to request."""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.process import died
from engines.config import ModelConfig
from engines.device import Watch
from engines.errors import UserError
from engines.lifetime import bound
from engines.processor import Inputs, Media

if TYPE_CHECKING:
    from engines.session import Session

ROOT = Path(__file__).resolve().parent.parent
IMAGE_SIDE = 14  # tokens; with Qwen3-VL's patches an image of 448 x 448
DECODED = 4  # the last tokens of the context are decoded, as decoding may allocate too
SHORT = 32  # tokens of a request after which resident memory is looked at
WARMUP, REQUESTS = 8, 32  # of those; allocators fill their pools in the first


class Memory(BaseModel):
    """Peak memory of a fresh process."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    device: str = Field("cpu", description="Whose memory: the process's for cpu, the GPU's for cuda.")
    context: int = Field(description="Tokens per sequence, prompt and answer.")
    batch: int = Field(description="Sequences at once.")
    image_tokens: int = Field(description="Tokens of the context that are an image's.")
    peak_memory_bytes: int = Field(description="The most it held, the whole process counted.")
    before_loading_bytes: int = Field(
        description="Resident memory before the model was opened: interpreter and libraries."
    )
    resident_bytes: list[int] = Field(
        default_factory=list, description="Resident memory after each of equal short requests."
    )


def peak_memory(directory: Path, *, context: int, batch: int, device: str = "cpu") -> Memory:
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
        f"--device={device}",
    ]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with nullcontext() if device == "cpu" else Watch() as watch:
        done = subprocess.run(
            bound(command), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )
    conditions = f"{directory} at context {context} x batch {batch}"
    if done.returncode < 0:
        raise died(conditions, done.returncode)
    lines = done.stdout.strip().splitlines() if done.returncode == 0 else done.stderr.strip().splitlines()
    last = lines[-1] if lines else f"no output, exit code {done.returncode}"
    if done.returncode:
        raise UserError(f"{conditions}: {last.removeprefix('error: ')}")
    try:
        found = Memory.model_validate_json(last)
        return found.model_copy(update={"peak_memory_bytes": watch.usage().memory_bytes}) if watch else found
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


def fill(directory: Path, context: int, batch: int, device: str = "cpu") -> Memory:
    """The measurement itself, to be made in a process of its own."""
    from engines.session import open_session

    if context <= DECODED or batch < 1:
        raise UserError(
            f"context {context}, batch {batch}: expected more than {DECODED} tokens and a sequence"
        )
    longest = ModelConfig.load(directory).text.max_position_embeddings
    if context > longest:
        raise UserError(f"a context of {context} tokens is beyond the model's {longest}; set a shorter one")
    before = resident_peak()
    session = open_session(directory, device=device)
    resident = after_each(session, min(SHORT, context))
    prompt = question(session.config, context - DECODED)
    _answer(session, [prompt] * batch)
    return Memory(
        device=device,
        context=context,
        batch=batch,
        image_tokens=int((prompt.input_ids == session.config.image_token_id).sum()),
        peak_memory_bytes=resident_peak(),
        before_loading_bytes=before,
        resident_bytes=resident,
    )


def after_each(session: Session, context: int = SHORT, requests: int = REQUESTS) -> list[int]:
    """Resident bytes of this process after each of so many requests of `context` tokens, answers included.

    Those that warm it up are not counted.
    """
    prompt, found = question(session.config, context - DECODED), []
    for _ in range(WARMUP + requests):
        session.forget()  # as if each showed another picture
        _answer(session, [prompt])
        _trim()
        found.append(resident_now())
    return found[WARMUP:]


def _answer(session: Session, prompts: list[Inputs]) -> None:
    """DECODED tokens for each prompt."""
    logits, cache = session.prefill(prompts, capacity=len(prompts[0].input_ids) + DECODED)
    tokens = logits[:, -1].argmax(axis=-1)
    for _ in range(DECODED):
        tokens = session.decode(tokens, cache).argmax(axis=-1)


def question(config: ModelConfig, length: int) -> Inputs:
    """A prompt of `length` tokens: a square image, of 14 x 14 tokens if half the prompt holds it, and text.

    Which image and text they are does not matter, nor where the image's tokens stand.
    """
    vision = config.vision
    side = min(IMAGE_SIDE, int((length / 2) ** 0.5))
    patches = side * vision.spatial_merge_size
    pixels = np.zeros((patches**2, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2))
    media = Media("image", (1, patches, patches), pixels.astype(np.float32)) if side else None
    ids = np.zeros(length, np.int64)
    ids[: side**2] = config.image_token_id
    positions = np.tile(np.arange(length, dtype=np.int64), (3, 1))
    return Inputs(ids, positions, (media,) if media else (), length)


def resident_peak() -> int:
    """Highest resident memory of this process in bytes.

    Linux's VmHWM begins at exec; ru_maxrss, used elsewhere, would begin at what the parent process held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    return _maximum(resource.RUSAGE_SELF)


def _trim() -> None:
    """Gives free memory back to the system, where the allocator can (glibc): what is kept of a request would
    else fill what loading has left free, and not be seen."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def resident_now() -> int:
    """Resident memory of this process in bytes; where the system does not tell, the highest so far."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    return resident_peak()


def largest_process() -> int:
    """Highest resident memory in bytes of this process or of any that it has waited for, theirs included."""
    return max(resident_peak(), _maximum(resource.RUSAGE_CHILDREN))


def _maximum(whose: int) -> int:
    peak = resource.getrusage(whose).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def main() -> int:
    """Child of `peak_memory`: one line of JSON on stdout, or one line of error on stderr."""
    parser = argparse.ArgumentParser(prog="python -m bench.resources", description=main.__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    try:
        print(fill(options.directory, options.context, options.batch, options.device).model_dump_json())
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        print(f"error: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
