"""`python -m bench`: score, time and compare checkpoints and artifacts; make the checkpoints to do it on."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.arguments import describe
from engines.errors import UserError

MODULES = {"history": "bench.history.commands", "endurance": "bench.endurance.commands"}
EXIT_CODES = "exit codes: 0 passed, 1 error, 2 usage, 3 gate failed, 4 gate inconclusive"


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Score, time and compare checkpoints and artifacts; make the checkpoints to do it on.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--suite", default="micro", metavar="NAME|FILE", help="see docs/suites.md; default micro"
    )
    common.add_argument("--seed", type=int, default=0, metavar="S", help="of the generated items; default 0")
    common.add_argument(
        "--threads", type=_positive, metavar="N", help="CPU threads; default one for each core"
    )
    common.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    answers = argparse.ArgumentParser(add_help=False)
    answers.add_argument("--items", type=_positive, default=1000, metavar="N", help="default 1000")
    answers.add_argument(
        "--max-tokens", type=_positive, default=16, metavar="N", help="of an answer; default 16"
    )
    answers.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="default 32")
    timing = argparse.ArgumentParser(add_help=False)
    timing.add_argument("--requests", type=_positive, default=24, metavar="N", help="default 24")
    timing.add_argument(
        "--repeats", type=_positive, default=2, metavar="N", help="of each request; default 2"
    )
    timing.add_argument(
        "--output-tokens", type=_two, default=16, metavar="N", help="of each answer; default 16"
    )
    timing.add_argument(
        "--warmup", type=_natural, default=2, metavar="N", help="requests thrown away; default 2"
    )

    accuracy = commands.add_parser("accuracy", parents=[common, answers], help="score by task")
    accuracy.add_argument("directory", type=Path, metavar="DIR", help="checkpoint or ONNX artifact")
    accuracy.add_argument("-o", "--out", type=Path, metavar="FILE", help="keep every answer as JSON lines")
    accuracy.add_argument(
        "--record", type=Path, metavar="RUN", help="keep the run, for `compare RUN B`: a folder, new"
    )

    latency = commands.add_parser(
        "latency", parents=[common, timing], help="time several on the same requests"
    )
    latency.add_argument("directories", type=Path, nargs="+", metavar="DIR", help="the first is the baseline")
    latency.add_argument(
        "--batch", type=_positive, nargs="+", default=[], metavar="N", help="together, besides one at a time"
    )
    latency.add_argument("--price-per-hour", type=_above_zero, metavar="X", help="of the machine; tells cost")
    latency.add_argument("--currency", default="USD", metavar="NAME", help="of that; default USD")

    compare = commands.add_parser(
        "compare", parents=[common, answers, timing], epilog=EXIT_CODES, help="gate B against A on both axes"
    )
    compare.add_argument(
        "baseline",
        type=Path,
        metavar="A",
        help="checkpoint or artifact, or a run of one, kept by accuracy --record",
    )
    compare.add_argument("candidate", type=Path, metavar="B", help="another, which is judged")
    compare.add_argument(
        "--accuracy-margin", type=float, default=1.0, metavar="POINTS", help="B may be below A; default 1"
    )
    compare.add_argument(
        "--slice-margin", type=float, metavar="POINTS", help="on any slice; default no limit"
    )
    compare.add_argument(
        "--latency-ratio", type=float, default=1.15, metavar="R", help="B / A may reach; default 1.15"
    )
    compare.add_argument(
        "--context", type=_positive, default=2048, metavar="N", help="for peak memory; default 2048"
    )
    compare.add_argument("--batch", type=_positive, default=1, metavar="N", help="for peak memory; default 1")

    divergence = commands.add_parser(
        "divergence",
        parents=[common],
        epilog=EXIT_CODES,
        help="the first place where B leaves A by more than rounding explains",
    )
    divergence.add_argument("baseline", type=Path, metavar="A", help="the 16-bit checkpoint")
    divergence.add_argument(
        "candidate", type=Path, metavar="B", help="made from it: checkpoint or ONNX artifact"
    )
    divergence.add_argument(
        "--items", type=_positive, default=24, metavar="N", help="that pass the layers; default 24"
    )

    plan = commands.add_parser("plan-n", help="how many items a margin of accuracy needs")
    plan.add_argument("--margin", type=float, default=2.0, metavar="POINTS", help="default 2")
    plan.add_argument(
        "--flips", type=float, default=5.0, metavar="PERCENT", help="of answers that turn; default 5"
    )
    plan.add_argument(
        "--loss", type=float, default=0.0, metavar="POINTS", help="that the candidate truly has; default 0"
    )
    plan.add_argument("--power", type=_likely, default=0.8, metavar="P", help="chance of PASS; default 0.8")
    plan.add_argument("--confidence", type=_likely, default=0.95, metavar="C", help="of PASS; default 0.95")
    plan.add_argument(
        "--slices", type=_positive, default=1, metavar="N", help="that must all pass; default 1"
    )
    plan.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    history = commands.add_parser(
        "history",
        epilog="exit codes: 0 no drift, 1 error, 2 usage, 3 drift",
        help="figures of builds over time",
    )
    history.add_argument(
        "files", type=Path, nargs="*", metavar="FILE", help="default artifacts/*/history.jsonl"
    )
    history.add_argument("-o", "--out", type=Path, metavar="FILE", help="page to write; default none")
    history.add_argument("--against", metavar="COMMIT", help="default what was published last")
    history.add_argument("--confidence", type=_likely, default=0.99, metavar="C", help="default 0.99")
    history.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        metavar="PERCENT",
        help="latency and bytes may grow; default 2",
    )
    history.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    turns = argparse.ArgumentParser(add_help=False)
    turns.add_argument("--rounds", type=_positive, default=3, metavar="N", help="default 3")
    turns.add_argument(
        "-o", "--out", type=Path, default=Path("docs/results"), metavar="DIR", help="default docs/results"
    )
    turns.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    peers = commands.add_parser(
        "peers", parents=[turns], help="measure an INT4 artifact beside other engines on a CPU"
    )
    peers.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="what the artifacts were made from"
    )
    peers.add_argument(
        "--artifact", type=Path, nargs="+", required=True, metavar="DIR", help="ratios are to the first"
    )
    peers.add_argument("--only", nargs="+", default=[], metavar="PEER", help="beginnings of peers' names")
    peers.add_argument("--threads", type=_positive, metavar="N", help="default one for each core")
    peers.add_argument(
        "--envs",
        type=Path,
        default=Path("artifacts/.peers"),
        metavar="DIR",
        help="keeps environments and converted models; default artifacts/.peers",
    )

    gpu = commands.add_parser(
        "gpu", parents=[turns], help="measure a checkpoint's arms on this machine's NVIDIA GPU"
    )
    gpu.add_argument(
        "checkpoints", type=Path, nargs="+", metavar="CHECKPOINT", help="the first is the baseline"
    )
    gpu.add_argument(
        "--work",
        type=Path,
        default=Path("artifacts/.gpu"),
        metavar="DIR",
        help="keeps graphs and engines; default artifacts/.gpu",
    )

    load = commands.add_parser("load", help="many clients at once on a server of OpenAI's API")
    load.add_argument("url", metavar="URL", help="as in http://127.0.0.1:8080")
    load.add_argument(
        "--clients", type=_positive, nargs="+", default=[1, 8], metavar="N", help="in turn; default 1 8"
    )
    load.add_argument("--seconds", type=_positive, default=30, metavar="S", help="of each; default 30")
    _questions(load)

    arrivals = commands.add_parser("open-loop", help="the same Poisson arrivals at several servers")
    arrivals.add_argument("urls", nargs="+", metavar="URL", help="the first is the baseline")
    arrivals.add_argument(
        "--rates",
        type=_above_zero,
        nargs="+",
        default=[0.25, 0.5, 0.75],
        metavar="F",
        help="of the requests the first answers in a second, one by one; default 0.25 0.5 0.75",
    )
    arrivals.add_argument("--requests", type=_two, default=40, metavar="N", help="of a round; default 40")
    arrivals.add_argument("--rounds", type=_positive, default=2, metavar="N", help="default 2")
    _questions(arrivals)

    router = commands.add_parser("router", help="measure the router beside other proxies")
    router.add_argument(
        "--peers",
        nargs="+",
        default=["nginx", "haproxy"],
        choices=("nginx", "haproxy", "envoy"),
        metavar="PEER",
        help="nginx, haproxy, envoy; default the first two",
    )
    router.add_argument(
        "--requests", type=_positive, default=3000, metavar="N", help="of a round; default 3000"
    )
    router.add_argument(
        "--streams", type=_natural, default=5000, metavar="N", help="held at once; default 5000"
    )
    router.add_argument("--rounds", type=_positive, default=15, metavar="N", help="default 15")
    router.add_argument(
        "--rollbacks", type=_natural, default=20, metavar="N", help="under 500 streams; default 20"
    )
    router.add_argument(
        "--work",
        type=Path,
        default=Path("artifacts/.router-bench"),
        metavar="DIR",
        help="configurations and logs",
    )
    router.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    endurance = commands.add_parser(
        "endurance",
        epilog=EXIT_CODES,
        help="an hour of mixed load on a router and two arms",
    )
    endurance.add_argument("--minutes", type=_above_zero, default=60.0, metavar="N", help="default 60")
    endurance.add_argument(
        "--artifacts",
        type=Path,
        nargs=2,
        metavar="DIR",
        help="candidate and baseline; default the embedded checkpoint's, built where they are not",
    )
    endurance.add_argument(
        "--rate", type=_above_zero, default=3.0, metavar="R", help="requests a second; default 3"
    )
    endurance.add_argument(
        "--seed", type=_natural, default=0, metavar="S", help="of requests and moments; default 0"
    )
    endurance.add_argument(
        "--work", type=Path, metavar="DIR", help="keeps logs and state, new; default a temporary one"
    )
    endurance.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    trust = commands.add_parser(
        "trust", epilog=EXIT_CODES, help="is the gate right about models whose truth is known"
    )
    trust.add_argument(
        "--draws", type=_positive, default=200, metavar="N", help="verdicts on each candidate; default 200"
    )
    trust.add_argument("--items", type=_positive, default=1000, metavar="N", help="of a draw; default 1000")
    trust.add_argument(
        "--pool", type=_positive, default=1440, metavar="N", help="different items to draw from; default 1440"
    )
    trust.add_argument(
        "--processes", type=_natural, default=80, metavar="N", help="for memory; 0 is not at all; default 80"
    )
    trust.add_argument("--accuracy-margin", type=float, default=2.0, metavar="POINTS", help="default 2")
    trust.add_argument("--slice-margin", type=float, default=10.0, metavar="POINTS", help="default 10")
    trust.add_argument("--latency-ratio", type=float, default=1.15, metavar="R", help="default 1.15")
    trust.add_argument("--seed", type=_natural, default=0, metavar="S", help="of items and draws; default 0")
    trust.add_argument(
        "--threads", type=_positive, metavar="N", help="CPU threads; default one for each core"
    )
    trust.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    micro = commands.add_parser("micro", help="train the embedded checkpoint again")
    micro.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("micro-checkpoint"),
        metavar="DIR",
        help="folder to write; default micro-checkpoint",
    )
    micro.add_argument(
        "--steps", type=_positive, metavar="N", help="fewer give a worse model; default the recipe's"
    )
    micro.add_argument("--threads", type=_positive, default=2, metavar="N", help="default 2")
    micro.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    shape = commands.add_parser("shape", help="write a random checkpoint of a real model's shape")
    shape.add_argument("shape", metavar="SHAPE", help="qwen3-vl-2b, -4b, -8b or -32b")
    shape.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write, new")
    shape.add_argument("--seed", type=int, default=0, metavar="S", help="of the weights; default 0")
    shape.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    describe(commands)
    return top


def _questions(command: argparse.ArgumentParser) -> None:
    """What a server is asked."""
    command.add_argument("--output-tokens", type=_two, default=32, metavar="N", help="default 32")
    command.add_argument(
        "--images", type=_natural, default=30, metavar="PERCENT", help="of requests show one; default 30"
    )
    command.add_argument(
        "--image-size", type=_positive, default=448, metavar="PIXELS", help="of a side; default 448"
    )
    command.add_argument("--seed", type=_natural, default=0, metavar="S", help="of the questions; default 0")
    command.add_argument("--api-key-file", type=Path, metavar="FILE", help="the key that the server asks for")
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code; usage errors are argparse's."""
    options = parser().parse_args(arguments)
    commands = importlib.import_module(MODULES.get(options.command, "bench.commands"))
    try:
        return int(getattr(commands, options.command.replace("-", "_"))(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: cannot use {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
    return 1


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _natural(text: str) -> int:
    return _at_least(text, 0)


def _two(text: str) -> int:
    return _at_least(text, 2)


def _above_zero(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number above 0")
    return found


def _likely(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.5 < found < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a chance between 0.5 and 1")
    return found


def _at_least(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least {least}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
