"""A GGUF file in one of llama.cpp's 4-bit types (Q4_0, Q4_K_M), or one of its fork's (IQ4_XS)."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

EMBEDDING = ("--token-embedding-type", "q6_K", "--output-tensor-type", "q6_K")


def convert(source: Path, out: Path, kind: str) -> None:
    """Quantise the decoder as `kind` says, the tied embedding as the type's own recipe does."""
    before, after = source / "model.gguf", out / "model.gguf"
    fork = find_spec("ik_llama_cpp")
    if fork and fork.origin:
        program = Path(fork.origin).parent / "bin" / "llama-quantize"
        program.chmod(0o755)
        # The fork's own 5-bit type for a tied embedding takes an hour to find; llama.cpp takes this one.
        subprocess.run([str(program), *EMBEDDING, str(before), str(after), kind], check=True)
        return
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    if code := llama_cpp.llama_model_quantize(str(before).encode(), str(after).encode(), options):
        raise RuntimeError(f"llama_model_quantize gave {code}")
    os.link(source / "mmproj.gguf", out / "mmproj.gguf")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
