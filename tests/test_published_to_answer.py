"""From a published variant to an answer: registry, pull, select, arm, router, an openai client."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from openai import OpenAI

from bench.router.servers import free_port
from engines.checkpoint import Checkpoint
from engines.export import export
from engines.self_test import record
from tests.conftest import ROOT
from tests.oci_registry import oci_registry
from tests.published import publish_variant


def build(*words: object) -> dict[str, object]:
    line = [sys.executable, "-m", "build", *map(str, words), "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_way_of_a_variant(micro_checkpoint: Path, tmp_path: Path) -> None:
    export(Checkpoint.open(micro_checkpoint), tmp_path / "exported")
    record(tmp_path / "exported")
    artifact = publish_variant(
        tmp_path / "here", "onnx-fp16", quantization=None, content=tmp_path / "exported"
    )
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pem").write_bytes(private)
    (tmp_path / "key.pub").write_bytes(public)
    (tmp_path / "registry").mkdir()
    with oci_registry(tmp_path / "registry") as host:
        to = ("--to", f"oci://{host}/team/qwen", "--key", tmp_path / "key.pem")
        (row,) = build("publish", artifact, *to)["published"]  # type: ignore[misc]
        there = ("--out", tmp_path / "there", "--key", tmp_path / "key.pub")
        build("pull", row["reference"], *there)
    port = free_port()
    line = [
        sys.executable,
        "-m",
        "serve",
        "up",
        f"--port={port}",
        "--admin-port=0",
        f"--state={tmp_path / 'state'}",
        "--select",
    ]
    line += ["--catalogue", str(tmp_path / "there"), "--device", "cpu", "--memory", "2GB"]
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        said = process.stderr.readline()
        assert said.startswith("selected onnx-fp16 for ")
        while not said.startswith("ready: router at"):
            said = process.stderr.readline()
            assert said, "it ended"
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=60, max_retries=0)
        question = [{"role": "user", "content": "BORA?"}]
        answer = client.chat.completions.create(model="qwen3-vl-micro", messages=question, temperature=0)  # type: ignore[arg-type]
        assert answer.choices[0].message.content
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
