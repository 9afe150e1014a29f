"""The decoder of a Qwen3-VL checkpoint as a Qwen3 checkpoint, for tools that know no Qwen3-VL.

On text alone the two compute the same: all three rows of the multimodal rotary positions are equal there.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from engines.checkpoint import SIDE_FILES, Checkpoint
from engines.safetensors import stream_safetensors

OURS, THEIRS = "model.language_model.", "model."


def convert(source: Path, out: Path) -> None:
    """Write config, weights and tokenizer of the text part of `source` into `out`."""
    checkpoint = Checkpoint.open(source)
    names = {
        name.replace(OURS, THEIRS, 1): name
        for name in checkpoint.names()
        if name.startswith(OURS) or name == "lm_head.weight"
    }
    layout = {
        name: (checkpoint.tensor(old).dtype, checkpoint.tensor(old).shape) for name, old in names.items()
    }
    stream_safetensors(out / "model.safetensors", layout, lambda name: [checkpoint.tensor(names[name])])
    for name in SIDE_FILES:
        if "processor" not in name and name != "config.json" and (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    (out / "config.json").write_text(json.dumps(_config(checkpoint), indent=1))


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    text = checkpoint.config.text.model_dump(exclude={"mrope_section", "mrope_interleaved", "rope_type"})
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": checkpoint.config.tie_word_embeddings,
        "eos_token_id": list(checkpoint.config.eos_token_ids),
        **text,
    }


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
