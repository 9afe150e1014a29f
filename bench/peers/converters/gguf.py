"""A checkpoint as GGUF by llama.cpp's own script: model.gguf in bf16, mmproj.gguf (vision) in 8 bits.

The script is not part of the Python package; the environment keeps the source it was built from.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any


def convert(source: Path, out: Path) -> None:
    """Both files from the checkpoint `source`."""
    script = next(Path(sys.prefix).glob("source/*/vendor/llama.cpp/convert_hf_to_gguf.py"))
    sys.path[:0] = [str(script.parent), str(script.parent / "gguf-py")]
    _accept_tokenizer()
    for name, kind, options in (("model", "bf16", []), ("mmproj", "q8_0", ["--mmproj"])):
        file = str(out / f"{name}.gguf")
        sys.argv = [str(script), str(source), "--outfile", file, "--outtype", kind, *options]
        runpy.run_path(str(script), run_name="__main__")


def _accept_tokenizer() -> None:
    """The script knows tokenizers by a hash of what they make of a text; a synthetic one of Qwen's kind it
    does not know, and that it splits text as Qwen's does is all it needs to be told."""
    from conversion.base import TextModel

    known = TextModel.get_vocab_base_pre

    def named(self: Any, tokenizer: Any) -> str:
        try:
            return str(known(self, tokenizer))
        except NotImplementedError:
            return "qwen2"

    TextModel.get_vocab_base_pre = named


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
