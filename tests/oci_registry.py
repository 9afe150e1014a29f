"""A real registry on loopback: Debian's docker-registry, which .ci/run installs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from engines.ports import free_port

# user "ann", password "sesame"; bcrypt, as the registry wants it
PASSWORDS = "ann:$2b$04$srxDVMlXWe5Fa6CAbOZQuu8zev3LV1GC4ESveBpKiB.L5O9p/v0T2\n"


def program(name: str) -> str:
    """A program's path; skips the test where it is not installed, but in CI, where it must be."""
    found = shutil.which(name)
    if found is None and not os.environ.get("CI"):
        pytest.skip(f"{name} is not installed: apt-get install docker-registry skopeo")
    assert found, f"{name} is missing in CI; see .ci/run"
    return found


@contextmanager
def oci_registry(folder: Path, auth: str = "") -> Iterator[str]:
    """HOST:PORT of a registry that keeps its blobs in `folder`/docker."""
    port = free_port()
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder}}}, delete: {{enabled: true}}}}\n{auth}"
    )
    with (folder / "registry.log").open("w") as log:
        process = subprocess.Popen([program("docker-registry"), "serve", str(config)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until and process.poll() is None:
            try:
                httpx2.get(f"http://127.0.0.1:{port}/v2/")
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        assert process.poll() is None, (folder / "registry.log").read_text()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def blob_file(folder: Path, digest: str) -> Path:
    """Where a registry keeps a blob."""
    hexdigest = digest.removeprefix("sha256:")
    return folder / "docker/registry/v2/blobs/sha256" / hexdigest[:2] / hexdigest / "data"
