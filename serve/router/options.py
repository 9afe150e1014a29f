"""The router's part of the command line; importing it loads nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

TARGETS = ("nginx", "haproxy", "envoy", "gateway-api", "istio")
CLUSTERS = ("kubernetes", "kserve")


def add_commands(commands: Any) -> None:
    """Adds router, up, compile, rollout, report, simulate and schema to `python -m serve`."""
    router = commands.add_parser("router", help="share requests among arms, as a policy says")
    router.add_argument("policy", type=Path, metavar="POLICY", help="YAML file")
    _add_router_options(router)

    together = commands.add_parser("up", help="start the arms of a policy, and its router")
    together.add_argument(
        "policy", type=Path, nargs="?", metavar="POLICY", help="YAML file; its arms have artifacts"
    )
    _add_router_options(together)
    together.add_argument(
        "--select",
        nargs=argparse.REMAINDER,
        metavar="…",
        help="instead of a policy, and last: the variant that `build select` chooses, given what follows",
    )

    compiled = commands.add_parser(
        "compile", help="write a policy for a proxy you already run, or for a cluster"
    )
    compiled.add_argument("policy", type=Path, metavar="POLICY", help="YAML file")
    compiled.add_argument(
        "--to", required=True, choices=(*TARGETS, *CLUSTERS, "ray"), help="which proxy or cluster"
    )
    compiled.add_argument(
        "--listen",
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="where the proxy listens; default 127.0.0.1:8080",
    )
    compiled.add_argument(
        "--image", metavar="IMAGE", help="container image of arms and router, for kubernetes and kserve"
    )
    compiled.add_argument("-o", "--out", type=Path, metavar="DIR", help="folder to write; default stdout")

    rollout = commands.add_parser("rollout", help="grow one arm, step by step, while guards watch")
    rollout.add_argument(
        "action",
        choices=("start", "status", "pause", "promote", "rollback"),
        help="start also goes on after pause; promote: the next step now; rollback: all to the baseline",
    )
    rollout.add_argument(
        "--to", type=float, metavar="PERCENT", help="the step to promote to; default the next one"
    )
    rollout.add_argument(
        "--admin",
        default="http://127.0.0.1:8090",
        metavar="URL",
        help="the router's; default http://127.0.0.1:8090",
    )
    rollout.add_argument(
        "--admin-token-file",
        type=Path,
        default=Path("router-state/admin-token"),
        metavar="FILE",
        help="the router's; default router-state/admin-token",
    )

    report = commands.add_parser(
        "report", help="write what a router's logs say of its arms, as one HTML page"
    )
    report.add_argument(
        "logs", type=Path, nargs="+", metavar="LOGS", help="a router's log files, rotated ones too"
    )
    report.add_argument(
        "--baseline", metavar="ARM", help="to compare with; default the policy's, or the arm most asked"
    )
    report.add_argument("--experiment", metavar="NAME", help="which one, where the logs have several")
    report.add_argument(
        "--state", type=Path, metavar="DIR", help="the router's: its policies tell the shares to expect"
    )
    report.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="page to write; default report.html",
    )
    report.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    tried = commands.add_parser(
        "stack", help="start two arms behind nginx, and Prometheus; try them; take all down"
    )
    tried.add_argument("candidate", type=Path, metavar="CANDIDATE", help="folder of a built variant")
    tried.add_argument("baseline", type=Path, metavar="BASELINE", help="folder of another")
    tried.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="keeps logs and configurations; default a temporary one"
    )

    simulated = commands.add_parser(
        "simulate", help="show what a rollout's guards do to candidates whose truth is known"
    )
    simulated.add_argument(
        "--experiments", type=int, default=200, metavar="N", help="rollouts for each truth; default 200"
    )
    simulated.add_argument("--seed", type=int, default=0, metavar="S", help="of what is drawn; default 0")
    simulated.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    commands.add_parser("schema", help="print the JSON Schema of policies")


def _add_router_options(router: argparse.ArgumentParser) -> None:
    router.add_argument(
        "--host", default="127.0.0.1", metavar="HOST", help="address for the traffic; default 127.0.0.1"
    )
    router.add_argument(
        "--port", type=_port, default=8080, metavar="N", help="port for the traffic; default 8080"
    )
    router.add_argument(
        "--admin-host",
        default="127.0.0.1",
        metavar="HOST",
        help="address of the admin port; default 127.0.0.1",
    )
    router.add_argument(
        "--admin-port", type=_port, default=8090, metavar="N", help="port of the admin page; default 8090"
    )
    router.add_argument(
        "--admin-token-file", type=Path, metavar="FILE", help="default STATE/admin-token, made when missing"
    )
    router.add_argument(
        "--state",
        type=Path,
        default=Path("router-state"),
        metavar="DIR",
        help="keeps versions and the audit log; default router-state",
    )
    router.add_argument("--log", type=Path, metavar="FILE", help="one JSON line a request, rotated at 100 MB")
    router.add_argument("--log-stdout", action="store_true", help="the same lines on stdout")
    router.add_argument("--otlp", metavar="URL", help="the same lines to a collector, http://HOST:4318")
    router.add_argument(
        "--drain",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds for streams to finish at the end; default 30",
    )


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a port: 0 (any free one) to 65535")
    return int(text)
