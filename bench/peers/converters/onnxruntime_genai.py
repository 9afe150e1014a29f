"""onnxruntime-genai's own builder on the Qwen3 checkpoint: INT4 in blocks of 128, last logits only.

Both are in its favour: by default it takes blocks of 32 and computes the logits of the whole prompt.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path


def convert(source: Path, out: Path) -> None:
    """Write the folder that onnxruntime-genai opens."""
    builder = (sys.executable, "-m", "onnxruntime_genai.models.builder")
    options = ("-p", "int4", "-e", "cpu", "--extra_options", "block_size=128", "prune_lm_head=true")
    with tempfile.TemporaryDirectory(dir=out.parent) as cache:
        subprocess.run([*builder, "-i", str(source), "-o", str(out), "-c", cache, *options], check=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
