"""A valid input or two of every parser, to begin from; those that were found to break one lie in corpus/."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
from PIL import Image

from build.recipe import RECIPES
from build.release import modelpack
from engines.artifact import File, Manifest
from engines.engine_files import EngineFacts
from serve.router.versions import Change
from tests.fuzz.parsers import CHECKPOINT, OBJECT
from tests.test_policy import SMALLEST

CORPUS = Path(__file__).parent / "corpus"
DIGEST = "sha256:" + 64 * "0"


def seeds(name: str) -> list[bytes]:
    """Valid inputs of the parser `name`."""
    return [seed if isinstance(seed, bytes) else seed.encode() for seed in SEEDS[name]()]


def found(name: str) -> list[Path]:
    """Inputs that once broke it."""
    return sorted((CORPUS / name).iterdir()) if (CORPUS / name).is_dir() else []


def beside(name: str) -> bytes:
    return (CHECKPOINT / name).read_bytes()


def safetensors() -> bytes:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(11)


def manifest() -> Manifest:
    files = {"decoder.onnx": File(sha256=64 * "0", bytes=3)}
    return Manifest(name="m", variant="v", stage="export", stage_version="1", key="k", files=files)


def image(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).save(stream, kind)
    return stream.getvalue()


def video() -> bytes:
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=4, width=64, height=64, pix_fmt="yuv420p")
        for shade in range(0, 240, 40):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), shade, np.uint8), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def item() -> str:
    messages = [{"role": "user", "content": "What?"}]
    return json.dumps({"task": "t", "messages": messages, "answer": "a", "guess": 0.5}) + "\n"


def change() -> str:
    digest = sha256(b"").hexdigest()
    return json.dumps(asdict(Change(1, 1, "put", "a", digest, "2026-01-01T00:00:00.000+00:00", ""))) + "\n"


def packed() -> str:
    layer = modelpack.layer("decoder.onnx", File(sha256=64 * "0", bytes=3))
    return json.dumps(modelpack.image(modelpack.config("m", manifest(), [layer]), [layer], {}))


FACTS = EngineFacts(
    target="sm89",
    runtime="TensorRT for RTX",
    version="1.7",
    cuda=13,
    context=64,
    batch=1,
    chunk=8,
    patches=16,
)
SEEDS = {
    "safetensors": lambda: [safetensors()],
    "index": lambda: [json.dumps({"metadata": {}, "weight_map": {"a": "model-1.safetensors"}})],
    "config": lambda: [beside("config.json")],
    "preprocessor": lambda: [beside("preprocessor_config.json")],
    "tokenizer": lambda: [beside("tokenizer.json")],
    "template": lambda: [beside("chat_template.jinja")],
    "messages": lambda: [
        json.dumps(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
                        {"type": "text", "text": "?"},
                    ],
                }
            ]
        )
    ],
    "manifest": lambda: [manifest().model_dump_json()],
    "engines": lambda: [FACTS.model_dump_json()],
    "self-test": lambda: [json.dumps({"prompt": "What?", "tokens": 8, "digest": DIGEST})],
    "modelpack": lambda: [packed()],
    "reference": lambda: [f"oci://registry.example:5000/a/b:tag@{DIGEST}"],
    "policy": lambda: [SMALLEST],
    "audit": lambda: [change()],
    "recipe": lambda: [path.read_bytes() for path in sorted(RECIPES.glob("*.yaml"))],
    "items": lambda: [item()],
    "calibration": lambda: [item()],
    "image": lambda: [image(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")],
    "video": lambda: [video()],
    "answer": lambda: [OBJECT, "<think>a</think><tool_call>{}</tool_call> (1,2),(3,4) 12 one, two"],
}
