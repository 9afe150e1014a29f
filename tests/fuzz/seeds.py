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
from pydantic_core import to_json

from bench.history.runs import Run
from build.recipe import RECIPES
from build.release import modelpack
from engines.artifact import File, Manifest
from engines.engine_files import EngineFacts
from serve.router.log import line
from serve.router.record import Record
from serve.router.versions import Change
from tests.fuzz.parsers import CHECKPOINT, JUDGED, OBJECT
from tests.scripted_arm import LAST, STREAM, event, request, whole
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


def chat() -> str:
    function = {"name": "zoom", "parameters": {"type": "object", "properties": {"by": {"type": "integer"}}}}
    call = {"id": "1", "type": "function", "function": {"name": "zoom", "arguments": "{}"}}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [picture, {"type": "text", "text": "?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "so"},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    rest = {"max_tokens": 8, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "seed": 3, "n": 2}
    rest |= {"stop": ["a", "b"], "logit_bias": {"5": 1}, "logprobs": True, "top_logprobs": 2, "user": "u"}
    rest |= {"stream": True, "stream_options": {"include_usage": True}, "frequency_penalty": 1.5}
    tools = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    return json.dumps({"messages": messages, **rest, **tools})


def held_to(schema: object) -> str:
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return json.dumps({"messages": [{"role": "user", "content": "?"}], "response_format": named})


SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "string", "pattern": "^[a-c]+$", "maxLength": 5},
        "b": {"anyOf": [{"type": "integer", "minimum": 1}, {"$ref": "#/$defs/c"}]},
        "d": {"type": "array", "items": {"enum": ["x", 1, None]}, "minItems": 1},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {"c": {"const": [True]}},
}


def gate() -> str:
    checks = [{"metric": "accuracy", "verdict": "FAIL"}, {"metric": "bytes", "verdict": "PASS"}]
    waivers = [{"check": "accuracy", "reason": "r", "expires": "2027-01-01"}]
    return json.dumps({"candidate": JUDGED.digest, "verdict": "PASS", "checks": checks, "waivers": waivers})


def logged() -> bytes:
    record = Record(1.0, "::1", b"POST", b"/v1/chat/completions", "e", 1)
    record.assigned = record.served = "b"
    record.status, record.first, record.last, record.ended = 200, 2.0, 3.0, 4.0
    record.input_tokens, record.output_tokens = 5, 7
    return bytes(to_json(line(record, 0.0))) + b"\n"


def history() -> str:
    run = Run(
        time="2026-11-01",
        model="m",
        variant="v",
        digest=DIGEST,
        verdict="PASS",
        published=True,
        hardware={"processor": "p", "gpu": None},
        commit=None,
        dirty=False,
        versions={"numpy": "2"},
        items=DIGEST,
        scores={"t": [1.0, 0.0]},
        figures={"accuracy": (50.0, 40.0, 60.0)},
        bytes=3,
        peak_memory_bytes=None,
    )
    return json.dumps(asdict(run)) + "\n"


def quantization(method: str) -> str:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32}
    groups = {
        "group_0": {"targets": ["Linear"], "weights": weights},
        "group_1": {"targets": ["re:.*layers.0.*"], "weights": weights | {"num_bits": 8}},
    }
    found = {
        "compressed-tensors": {"format": "pack-quantized", "config_groups": groups},
        "gptq": {"bits": 4, "group_size": 128, "sym": True, "checkpoint_format": "gptq_v2"},
        "awq": {"bits": 4, "group_size": -1, "version": "gemm"},
    }
    return json.dumps({"quantization_config": {"quant_method": method, **found[method]}})


def chunked(body: bytes) -> bytes:
    return request(b"")[:-2].replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + body


def administer(method: str, target: str, body: bytes = b"") -> bytes:
    return request(body, method=method, target=target, Authorization="Bearer token", If_Match='"1"')


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
    "quantization": lambda: [quantization(method) for method in ("compressed-tensors", "gptq", "awq")],
    "generation": lambda: [
        '{"do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}'
    ],
    "request": lambda: [chat(), held_to(SCHEMA)],
    "traffic": lambda: [
        request(b'{"user": "u", "model": "m"}', x_user_id="u", Expect="100-continue"),
        chunked(b"2\r\n{}\r\n1;a=b\r\n \r\n0\r\nt: 1\r\n\r\n") + request(b"", method="GET", target="/health"),
        request(method="HEAD", Connection="close, x-a", X_A="1"),
    ],
    "arm": lambda: [
        whole(b'{"usage": {"prompt_tokens": 3, "completion_tokens": 5}}'),
        STREAM + event('{"id": "i", "finish_reason": "stop"}') + event("[DONE]") + LAST,
        b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"", 204, b"connection: close, x\r\nx: 1\r\n"),
        b"HTTP/1.1 200 OK\r\n\r\nto the end",
    ],
    "admin": lambda: [
        administer("PUT", "/policy", SMALLEST.encode()),
        administer("POST", "/rollback", b'{"to": 1}'),
        administer("POST", "/rollout/promote", b'{"to": 50.5}'),
    ],
    "gate": lambda: [gate()],
    "log": lambda: [logged()],
    "history": lambda: [history()],
    "answer": lambda: [OBJECT, "<think>a</think><tool_call>{}</tool_call> (1,2),(3,4) 12 one, two"],
}
