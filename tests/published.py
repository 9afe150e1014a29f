"""Published variants as `build all` leaves them, but with evidence made up and noise for weights."""

from __future__ import annotations

import json
import random
import shutil
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.accuracy import Observation
from bench.latency import Timing
from build.store import processor_name
from engines.artifact import Manifest, hash_folder, write_json
from tests.conftest import ROOT

HERE = {"host": socket.gethostname(), "processor": processor_name(), "gpu": None}
ONNX = {"runtime": "onnxruntime", "execution_provider": "CPU", "precision": "W4A16"}
INT4 = {"method": "gptq", "bits": 4, "group_size": 32, "symmetric": True, "components": ["decoder linears"]}
CHECK = {"metric": "accuracy", "slice": "all", "unit": "points", "baseline": 96.4, "candidate": 94.9}
CHECK |= {"delta": -1.5, "ci_low": -2.3, "ci_high": -0.9, "limit": -5.0, "relative": False, "n": 1000}


def publish_variant(
    root: Path,
    variant: str,
    *,
    right: int = 90,
    e2e_ms: float | None = 10.0,
    memory: int = 100_000_000,
    engine: dict[str, Any] | None = ONNX,
    quantization: dict[str, Any] | None = INT4,
    environment: dict[str, Any] = HERE,
    verdict: str = "PASS",
    waivers: list[dict[str, str]] | None = None,
    seed: int = 0,
    content: Path | None = None,
    created: str = "2026-11-23T00:00:00+00:00",
) -> Path:
    """`root`/qwen3-vl-micro/`variant`: `right` of 100 answers, requests that took `e2e_ms`, peak `memory`."""
    folder = root / "qwen3-vl-micro" / variant
    evidence = folder / "evidence"
    if content is not None:  # a real one
        shutil.copytree(content, folder)
    else:
        folder.mkdir(parents=True)
        for name in ("config.json", "generation_config.json", "tokenizer.json"):
            shutil.copyfile(ROOT / "bench" / "micro" / "checkpoint" / name, folder / name)
        weights = "decoder.onnx.data" if engine == ONNX else "model.safetensors"
        (folder / weights).write_bytes(random.Random(seed).randbytes(300_000))
    files = hash_folder(folder)
    evidence.mkdir()
    answers = [
        Observation(str(i), "facts", "a", "a", i < right, 0.0, (1,), float(i < right)) for i in range(100)
    ]
    (evidence / "observations.jsonl").write_text("".join(json.dumps(asdict(a)) + "\n" for a in answers))
    if e2e_ms is not None:
        timings = [
            Timing(variant, i, 0, 57, 16, e2e_ms / 4, e2e_ms / 20, e2e_ms, 16e3 / e2e_ms) for i in range(4)
        ]
        (evidence / "latency.jsonl").write_text("".join(json.dumps(asdict(t)) + "\n" for t in timings))
    told = {"verdict": "FAIL" if waivers else verdict, "waived": bool(waivers)}
    check = CHECK | told | {"reason": f"-2.3 points or better, {verdict}"}
    gate = {"baseline": "sha256:b", "candidate": "sha256:c", "verdict": verdict, "checks": [check]}
    standing = [waiver | {"status": "in force"} for waiver in waivers or []]
    write_json(evidence / "gate.json", gate | {"limits": {}, "slices": [], "waivers": standing})
    write_json(evidence / "environment.json", environment | {"packages": {"numpy": "2.4.6"}})
    manifest = Manifest(
        name=variant,
        variant=variant,
        stage="export",
        stage_version="1",
        key="sha256:k",
        files=files,
        source={"repo": "Qwen/Qwen3-VL-2B-Instruct", "revision": "89644892e4d8", "license": "apache-2.0"},
        quantization=quantization,
        engine=engine,
        requires={"device": "cpu", "memory_bytes": memory, "context": 2048, "batch": 1, "image_tokens": 196},
        created=created,
        evidence={f"evidence/{name}": file for name, file in hash_folder(evidence).items()},
    )
    manifest.write(folder)
    return folder
