"""The router's part of the command line."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from engines.errors import UserError

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

    compiled = commands.add_parser("compile", help="the same policy for a proxy you already run")
    compiled.add_argument("policy", type=Path, metavar="POLICY", help="YAML file")
    compiled.add_argument(
        "--to", required=True, choices=(*TARGETS, *CLUSTERS, "ray"), help="what to write for"
    )
    compiled.add_argument(
        "--listen", default="127.0.0.1:8080", metavar="HOST:PORT", help="default 127.0.0.1:8080"
    )
    compiled.add_argument(
        "--image", metavar="IMAGE", help="of the arms and the router, for kubernetes and kserve"
    )
    compiled.add_argument("-o", "--out", type=Path, metavar="DIR", help="default stdout")

    rollout = commands.add_parser("rollout", help="grow one arm, step by step, while guards watch")
    rollout.add_argument(
        "action",
        choices=("start", "status", "pause", "promote", "rollback"),
        help="promote: the next step now; rollback: all to the baseline, for the next request",
    )
    rollout.add_argument(
        "--to", type=float, metavar="PERCENT", help="the step to promote to; default the next one"
    )
    rollout.add_argument(
        "--admin", default="http://127.0.0.1:8090", metavar="URL", help="default http://127.0.0.1:8090"
    )
    rollout.add_argument(
        "--admin-token-file",
        type=Path,
        default=Path("router-state/admin-token"),
        metavar="FILE",
        help="default router-state/admin-token",
    )

    report = commands.add_parser("report", help="what a router's logs say of its arms, as one page")
    report.add_argument("logs", type=Path, nargs="+", metavar="LOGS", help="files, rotated ones too")
    report.add_argument("--baseline", metavar="ARM", help="default the policy's, or the arm most asked")
    report.add_argument("--experiment", metavar="NAME", help="needed where the logs have several")
    report.add_argument(
        "--state", type=Path, metavar="DIR", help="the router's: its policies tell the shares to expect"
    )
    report.add_argument(
        "-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="default report.html"
    )
    report.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    tried = commands.add_parser(
        "stack", help="two arms behind nginx and Prometheus, started, tried, taken down"
    )
    tried.add_argument("candidate", type=Path, metavar="CANDIDATE", help="folder of a built variant")
    tried.add_argument("baseline", type=Path, metavar="BASELINE", help="folder of another")
    tried.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="keeps its files; default a temporary one"
    )

    simulated = commands.add_parser("simulate", help="what the guards do to candidates whose truth is known")
    simulated.add_argument(
        "--experiments", type=int, default=200, metavar="N", help="for each truth; default 200"
    )
    simulated.add_argument("--seed", type=int, default=0, metavar="S", help="default 0")
    simulated.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    commands.add_parser("schema", help="the JSON Schema of policies")


def _add_router_options(router: argparse.ArgumentParser) -> None:
    router.add_argument(
        "--host", default="127.0.0.1", metavar="HOST", help="of the traffic; default 127.0.0.1"
    )
    router.add_argument("--port", type=_port, default=8080, metavar="N", help="of the traffic; default 8080")
    router.add_argument("--admin-host", default="127.0.0.1", metavar="HOST", help="default 127.0.0.1")
    router.add_argument(
        "--admin-port", type=_port, default=8090, metavar="N", help="of the admin page; default 8090"
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


def route(options: argparse.Namespace) -> None:
    """The router, until it is told to stop."""
    from serve.router.run import Options, run

    run(
        Options(
            policy=options.policy,
            host=options.host,
            port=options.port,
            admin_host=options.admin_host,
            admin_port=options.admin_port,
            admin_token_file=options.admin_token_file or options.state / "admin-token",
            state=options.state,
            log=options.log,
            log_stdout=options.log_stdout,
            otlp=options.otlp,
            drain_s=options.drain,
        )
    )


def up(options: argparse.Namespace) -> None:
    """Arms and router, until they are told to stop."""
    from serve.selected import select_policy
    from serve.up import up

    if (options.policy is None) == (options.select is None):
        raise UserError("serve up: give a POLICY, or --select and what to select by; exactly one of the two")
    if options.select is not None:
        options.policy = select_policy(options.select, options.state)
    up(options)


def compile_(options: argparse.Namespace) -> None:
    """A policy's text for a proxy, to files or stdout."""
    from serve.compile import compile_policy
    from serve.deploy.kserve import kserve
    from serve.deploy.kubernetes import kubernetes
    from serve.deploy.ray import ray
    from serve.router.reading import read_policy

    policy = read_policy(options.policy)
    if bool(options.image) != (options.to in CLUSTERS):
        raise UserError(f"--image is for {' and '.join(CLUSTERS)}, which need it; found --to {options.to}")
    if options.to == "kubernetes":
        files = kubernetes(policy, options.policy.read_text(), options.image)
    elif options.to == "kserve":
        files = kserve(policy, options.image)
    elif options.to == "ray":
        files = ray(policy)
    else:
        files = compile_policy(policy, options.to, options.listen)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (options.out / name).write_text(text)
            print(options.out / name)
        return
    for name, text in files.items():
        if len(files) > 1:
            print(f"==> {name}", file=sys.stderr)
        sys.stdout.write(text)


def rollout(options: argparse.Namespace) -> None:
    """One request to the admin port; its answer to stdout."""
    from serve.rollout.remote import ask

    if options.to is not None and options.action != "promote":
        raise UserError(f"--to is for promote, found {options.action}")
    print(json.dumps(ask(options.admin, options.admin_token_file, options.action, options.to), indent=2))


def report(options: argparse.Namespace) -> None:
    """A page to a file, a verdict for each arm to stdout."""
    from serve.report.lines import read_logs
    from serve.report.logs import make_report
    from serve.report.page import figures, page
    from serve.router.reading import parse_policy
    from serve.router.versions import read_texts

    texts = read_texts(options.state) if options.state else {}
    policies = {str(version): parse_policy(text) for version, text in texts.items()}
    baseline = options.baseline or next((policy.baseline for policy in policies.values()), None)
    made = make_report(read_logs(options.logs), baseline, options.experiment, policies)
    options.out.write_text(page(made))
    found = figures(made)
    if made.left_out:
        print(f"{made.left_out} lines are none of a router's log and were left out:", file=sys.stderr)
        print(*made.named, sep="\n", file=sys.stderr)
    for name, comparison in found["comparisons"].items():
        print(f"{name} against {made.baseline}: {comparison['verdict']}")
    print(options.out)
    if options.json:
        print(json.dumps(found))


def simulate(options: argparse.Namespace) -> None:
    """A line for each truth."""
    from dataclasses import asdict

    from serve.rollout import simulate

    found = []
    for truth in simulate.TRUTHS:
        outcome = simulate.simulate(truth, options.experiments, options.seed)
        found.append(asdict(outcome))
        print(
            f"{outcome.truth}: {outcome.rolled_back} of {outcome.experiments} rolled back, "
            f"{outcome.rate:.1%} ({outcome.rate_low:.1%} to {outcome.rate_high:.1%}), {outcome.held} held; "
            f"median of the candidate's requests until then {outcome.median_requests}, "
            f"at {outcome.median_percent} %",
            flush=True,
        )
    if options.json:
        print(json.dumps({"outcomes": found}))


def stack(options: argparse.Namespace) -> None:
    """A line for each thing that was seen."""
    from serve.stack import stack

    stack(options)


def schema(options: argparse.Namespace) -> None:
    """The JSON Schema of policies, to stdout."""
    from serve.router.reading import schema

    sys.stdout.write(schema())


COMMANDS = {
    "router": route,
    "up": up,
    "compile": compile_,
    "rollout": rollout,
    "report": report,
    "stack": stack,
    "simulate": simulate,
    "schema": schema,
}
