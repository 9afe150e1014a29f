"""The hub's own client, given a staged variant; a stand-in for the hub on loopback takes what it sends."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.conftest import ROOT
from tests.http_server import answering
from tests.published import publish_variant


class Hub(BaseHTTPRequestHandler):
    """Takes every file inline; `taken` is what a commit brought."""

    taken: dict[str, bytes]
    created: str | None

    def do_POST(self) -> None:
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length) if length else self._chunks()
        kind = type(self)
        if self.path == "/api/repos/create":
            kind.created = json.loads(body)["name"]
            self._answer({"url": f"http://{self.headers['host']}/me/qwen"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            self._answer({"files": modes})
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    kind.taken[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._answer(
                {
                    "commitUrl": f"http://{self.headers['host']}/me/qwen/commit/1",
                    "commitOid": "1",
                    "success": True,
                }
            )
        else:
            self.send_error(404, self.path)

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _answer(self, document: dict[str, Any]) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *values: object) -> None:
        """Nothing: the tests' output is the tests'."""


@contextmanager
def hub() -> Iterator[str]:
    Hub.taken, Hub.created = {}, None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    with answering(server):
        yield f"http://127.0.0.1:{server.server_port}"


def publish(artifact: Path, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_x", "HF_HOME": str(home)}
    line = [sys.executable, "-m", "build", "publish", str(artifact), "--to", "hf://me/qwen"]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_the_hub_gets_the_whole_folder(tmp_path: Path) -> None:
    artifact = publish_variant(tmp_path, "gptq-int4-onnx")
    with hub() as endpoint:
        done = publish(artifact, endpoint, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert f"{endpoint}/me/qwen/commit/1" in done.stdout
    assert Hub.created == "qwen"
    ours = {
        str(path.relative_to(artifact)): path.read_bytes() for path in artifact.rglob("*") if path.is_file()
    }
    assert {name: Hub.taken[name] for name in ours if name != "manifest.json"} == {
        name: content for name, content in ours.items() if name != "manifest.json"
    }
    assert {"README.md", "manifest.json", "attestations/sbom.cdx.json"} <= set(Hub.taken)


def test_a_hub_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    artifact = publish_variant(tmp_path, "gptq-int4-onnx")
    done = publish(artifact, "http://127.0.0.1:1", tmp_path / "home")
    assert done.returncode == 1
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert "hf://me/qwen: " in line
    assert "Traceback" not in done.stderr
