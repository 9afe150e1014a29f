"""What each command of the router's does: results on stdout, all else on stderr."""

from __future__ import annotations

import argparse
import json
import sys

from engines.errors import UserError
from serve.router.options import CLUSTERS


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
    if not found["comparisons"]:
        print("nothing to compare: no arm but the baseline was asked", file=sys.stderr)
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
        when = f"half of them within {outcome.median_requests} requests of the candidate"
        print(
            f"{outcome.truth}: {outcome.rolled_back} of {outcome.experiments} rolled back, "
            f"{outcome.rate:.1%} ({outcome.rate_low:.1%} to {outcome.rate_high:.1%}), {outcome.held} held"
            + (f"; {when}, at {outcome.median_percent} % or below" if outcome.rolled_back else ""),
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
