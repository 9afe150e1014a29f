"""The command line of an arm; importing it loads nothing heavy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_options(arm: argparse.ArgumentParser) -> None:
    """Options of an arm; a container sets some of them by environment variables."""
    env = os.environ.get
    arm.add_argument(
        "artifact",
        type=Path,
        metavar="ARTIFACT",
        help="folder of a variant: ONNX artifact, checkpoint or engines",
    )
    arm.add_argument(
        "--host", metavar="HOST", default="127.0.0.1", help="address to listen on; default 127.0.0.1"
    )
    arm.add_argument(
        "--port",
        type=int,
        metavar="N",
        default=env("PORT", "8080"),
        help="0 takes a free one; default $PORT or 8080",
    )
    arm.add_argument(
        "--model-name",
        metavar="NAME",
        default=env("MODEL_NAME"),
        help="as clients call it; default $MODEL_NAME, or its folder's",
    )
    arm.add_argument(
        "--device",
        metavar="NAME",
        default=env("DEVICE", "cpu"),
        help="cpu, or cuda for a checkpoint; default $DEVICE or cpu",
    )
    arm.add_argument(
        "--dtype",
        metavar="NAME",
        default=env("DTYPE", "auto"),
        help="auto, the artifact's own; default $DTYPE or auto",
    )
    arm.add_argument("--slots", type=int, default=8, metavar="N", help="answers at once; default 8")
    arm.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens of prompt and answer; default as many as fit, at most 8192",
    )
    arm.add_argument(
        "--queue",
        type=int,
        default=64,
        metavar="N",
        help="requests that may wait; default 64, others get 429",
    )
    arm.add_argument("--threads", type=int, metavar="N", help="CPU threads; by default one for each core")
    arm.add_argument(
        "--timeout", type=float, default=600, metavar="S", help="seconds that a request may take; default 600"
    )
    arm.add_argument(
        "--max-file-size",
        type=int,
        default=env("MAX_FILE_SIZE", "20000000"),
        metavar="BYTES",
        help="largest picture or video; default $MAX_FILE_SIZE or 20000000",
    )
    arm.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="refuse whoever does not send the key in it"
    )
    arm.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let web pages from there ask, as from http://127.0.0.1:8081; may be repeated",
    )
    arm.add_argument(
        "--allow-private-urls", action="store_true", help="fetch media from private addresses too"
    )
