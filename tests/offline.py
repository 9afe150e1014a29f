"""A variant built, and asked for an answer behind a router, in a process whose every connection is recorded.

    unshare --user --map-root-user --net python -m tests.offline FOLDER

Without `unshare` the network is there. What it did is the one line on stdout.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

from bench.endurance.client import ask
from bench.endurance.mix import requests
from bench.endurance.processes import running
from tests.conftest import ROOT

# Imported by every Python that is started from here.
RECORD = """\
import sys
EVENTS = {"socket.connect": 1, "socket.sendto": 1, "socket.sendmsg": 1, "socket.getaddrinfo": 0}

def record(event, arguments):
    if event in EVENTS:
        with open(%r, "a") as file:
            file.write(event + " " + repr(arguments[EVENTS[event]]) + "\\n")

sys.addaudithook(record)
"""
SMALL = (
    *("evaluate.items=8", "evaluate.fidelity_items=4", "evaluate.max_tokens=4"),
    *("latency.requests=2", "latency.output_tokens=2", "latency.most_repeats=2", "latency.batches=[1]"),
)
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
ELSEWHERE = ("192.0.2.1", 80)  # an address for documentation, RFC 5737


def loopback_up() -> None:
    """The only interface of a new namespace is down."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))


def is_cut() -> bool:
    """Whether there is no way to anywhere else."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(ELSEWHERE) == errno.ENETUNREACH


def main(folder: Path) -> None:
    cut = is_cut()
    if cut:
        loopback_up()
    (folder / "sitecustomize.py").write_text(RECORD % str(folder / "connections.txt"))
    os.environ["PYTHONPATH"] = str(folder)
    artifacts = folder / "artifacts"
    command = [sys.executable, "-m", "build", "all", "--only", "onnx-fp16", f"--out={artifacts}"]
    settings = [word for setting in SMALL for word in ("--set", setting)]
    built = subprocess.run([*command, *settings], cwd=ROOT, stdout=sys.stderr).returncode
    (artifact,) = (artifacts / ".store" / "export").glob("onnx-fp16-*")
    with running([artifact, artifact], folder / "site") as site:
        asked = [request for request in requests(1, 200, 0) if request.kind != "leaves"]
        kinds = {request.kind: request for request in asked}
        heard = {kind: ask(site.port, request).good for kind, request in kinds.items()}
        admin = [f"--admin=http://127.0.0.1:{site.admin_port}"]
        admin += [f"--admin-token-file={folder / 'site' / 'state' / 'admin-token'}"]
        status = [sys.executable, "-m", "serve", "rollout", "status", *admin]
        subprocess.run(status, cwd=ROOT, stdout=sys.stderr, check=True)
    print(json.dumps({"cut": cut, "built": built, "heard": heard}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
