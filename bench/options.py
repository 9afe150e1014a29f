"""The options of commands that measure models and builds, or make models to measure."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from engines.arguments import above_zero, likely, natural, positive, two

EXIT_CODES = "exit codes: 0 passed, 1 error, 2 usage, 3 gate failed, 4 gate inconclusive"


def add_models(commands: Any) -> None:
    """Adds accuracy to shape to `python -m bench`."""
    common = ArgumentParser(add_help=False)
    common.add_argument(
        "--suite",
        default="micro",
        metavar="NAME|FILE",
        help="what is asked: see docs/suites.md; default micro",
    )
    common.add_argument("--seed", type=int, default=0, metavar="S", help="seed of what is asked; default 0")
    common.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads; default one for each core"
    )
    common.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    answers = ArgumentParser(add_help=False)
    answers.add_argument("--items", type=positive, default=1000, metavar="N", help="questions; default 1000")
    answers.add_argument(
        "--max-tokens", type=positive, default=16, metavar="N", help="longest answer; default 16"
    )
    answers.add_argument(
        "--batch-size", type=positive, default=32, metavar="N", help="questions answered together; default 32"
    )
    timing = ArgumentParser(add_help=False)
    timing.add_argument(
        "--requests", type=positive, default=24, metavar="N", help="different requests; default 24"
    )
    timing.add_argument(
        "--repeats", type=positive, default=2, metavar="N", help="how often each is answered; default 2"
    )
    timing.add_argument(
        "--output-tokens", type=two, default=16, metavar="N", help="length of every timed answer; default 16"
    )
    timing.add_argument(
        "--rates",
        type=above_zero,
        nargs="*",
        default=[0.25, 0.5],
        metavar="F",
        help="loads besides: fractions of what the first answers; default 0.25 0.5",
    )
    timing.add_argument(
        "--warmup",
        type=natural,
        default=2,
        metavar="N",
        help="requests answered before timing begins; default 2",
    )

    accuracy = commands.add_parser("accuracy", parents=[common, answers], help="score a model task by task")
    accuracy.add_argument("directory", type=Path, metavar="DIR", help="checkpoint or ONNX artifact")
    accuracy.add_argument("-o", "--out", type=Path, metavar="FILE", help="keep every answer as JSON lines")
    accuracy.add_argument(
        "--record", type=Path, metavar="RUN", help="keep the run in this new folder, for `compare RUN B`"
    )

    latency = commands.add_parser(
        "latency", parents=[common, timing], help="time several models on the same requests"
    )
    latency.add_argument(
        "directories",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="checkpoints or artifacts; the first is the baseline",
    )
    latency.add_argument(
        "--batch",
        type=positive,
        nargs="+",
        default=[],
        metavar="N",
        help="requests answered together, besides one at a time",
    )
    latency.add_argument(
        "--price-per-hour", type=above_zero, metavar="X", help="of the machine; tells what answers cost"
    )
    latency.add_argument("--currency", default="USD", metavar="NAME", help="of that price; default USD")

    compare = commands.add_parser(
        "compare",
        parents=[common, answers, timing],
        epilog=EXIT_CODES,
        help="the gate: judge whether B may replace A, by answers, speed and memory",
    )
    compare.add_argument(
        "baseline",
        type=Path,
        metavar="A",
        help="checkpoint or artifact, or a run of one, kept by accuracy --record",
    )
    compare.add_argument("candidate", type=Path, metavar="B", help="checkpoint or artifact that is judged")
    compare.add_argument(
        "--accuracy-margin",
        type=float,
        default=1.0,
        metavar="POINTS",
        help="how far B's accuracy may be below A's; default 1",
    )
    compare.add_argument(
        "--slice-margin", type=float, metavar="POINTS", help="the same on any one task; default no limit"
    )
    compare.add_argument(
        "--latency-ratio",
        type=float,
        default=1.15,
        metavar="R",
        help="how many times as long as A B may take; default 1.15",
    )
    compare.add_argument(
        "--context",
        type=positive,
        default=2048,
        metavar="N",
        help="tokens of a sequence, for peak memory; default 2048",
    )
    compare.add_argument(
        "--batch", type=positive, default=1, metavar="N", help="sequences, for peak memory; default 1"
    )

    divergence = commands.add_parser(
        "divergence",
        parents=[common],
        epilog=EXIT_CODES,
        help="find the first place where B leaves A by more than rounding explains",
    )
    divergence.add_argument("baseline", type=Path, metavar="A", help="the 16-bit checkpoint")
    divergence.add_argument(
        "candidate", type=Path, metavar="B", help="made from it: checkpoint or ONNX artifact"
    )
    divergence.add_argument(
        "--items", type=positive, default=24, metavar="N", help="questions to show to both; default 24"
    )

    plan = commands.add_parser("plan-n", help="tell how many items a margin of accuracy needs")
    plan.add_argument("--margin", type=float, default=2.0, metavar="POINTS", help="of the gate; default 2")
    plan.add_argument(
        "--flips",
        type=float,
        default=5.0,
        metavar="PERCENT",
        help="answers that turn from right to wrong or back; default 5",
    )
    plan.add_argument(
        "--loss", type=float, default=0.0, metavar="POINTS", help="what the candidate truly loses; default 0"
    )
    plan.add_argument(
        "--power", type=likely, default=0.8, metavar="P", help="chance of PASS to be had; default 0.8"
    )
    plan.add_argument(
        "--confidence", type=likely, default=0.95, metavar="C", help="of the gate's bound; default 0.95"
    )
    plan.add_argument(
        "--slices", type=positive, default=1, metavar="N", help="equal slices that must all pass; default 1"
    )
    plan.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    history = commands.add_parser(
        "history",
        epilog="exit codes: 0 no drift, 1 error, 2 usage, 3 drift",
        help="show the figures of all builds, and whether the newest has drifted",
    )
    history.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="files of one model; default artifacts/*/history.jsonl",
    )
    history.add_argument("-o", "--out", type=Path, metavar="FILE", help="HTML page to write; default none")
    history.add_argument(
        "--against", metavar="COMMIT", help="compare with this build; default what was published last"
    )
    history.add_argument(
        "--confidence", type=likely, default=0.99, metavar="C", help="that an alarm is true; default 0.99"
    )
    history.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        metavar="PERCENT",
        help="how much latency, memory and bytes may grow; default 2",
    )
    history.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    turns = ArgumentParser(add_help=False)
    turns.add_argument(
        "--rounds", type=positive, default=3, metavar="N", help="turns of every engine; default 3"
    )
    turns.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("docs/results"),
        metavar="DIR",
        help="for the table; default docs/results",
    )
    turns.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    peers = commands.add_parser(
        "peers", parents=[turns], help="measure artifacts beside other engines on a CPU"
    )
    peers.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="what the artifacts were made from"
    )
    peers.add_argument(
        "--artifact",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="artifacts of it; ratios are to the first",
    )
    peers.add_argument(
        "--only", nargs="+", default=[], metavar="PEER", help="peers whose names begin so; default all"
    )
    peers.add_argument(
        "--threads", type=positive, metavar="N", help="of every engine; default one for each core"
    )
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

    trust = commands.add_parser(
        "trust", epilog=EXIT_CODES, help="judge models whose truth is known: is the gate right about them"
    )
    trust.add_argument(
        "--draws", type=positive, default=400, metavar="N", help="verdicts on each candidate; default 400"
    )
    trust.add_argument(
        "--items", type=positive, default=1000, metavar="N", help="items of a draw; default 1000"
    )
    trust.add_argument(
        "--pool", type=positive, default=1440, metavar="N", help="different items to draw from; default 1440"
    )
    trust.add_argument(
        "--processes",
        type=natural,
        default=150,
        metavar="N",
        help="fresh ones, to judge memory by; 0 leaves it out; default 150",
    )
    trust.add_argument(
        "--accuracy-margin", type=float, default=2.0, metavar="POINTS", help="of the gate; default 2"
    )
    trust.add_argument(
        "--slice-margin", type=float, default=10.0, metavar="POINTS", help="of any one task; default 10"
    )
    trust.add_argument(
        "--latency-ratio", type=float, default=1.15, metavar="R", help="limit of the gate; default 1.15"
    )
    trust.add_argument("--seed", type=natural, default=0, metavar="S", help="of items and draws; default 0")
    trust.add_argument("--threads", type=positive, metavar="N", help="CPU threads; default one for each core")
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
    micro.add_argument("--steps", type=positive, metavar="N", help="fewer give a worse model; default 3600")
    micro.add_argument("--threads", type=positive, default=2, metavar="N", help="CPU threads; default 2")
    micro.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    shape = commands.add_parser("shape", help="write a random checkpoint of a real model's shape")
    shape.add_argument("shape", metavar="SHAPE", help="qwen3-vl-2b, qwen3-vl-4b, qwen3-vl-8b or qwen3-vl-32b")
    shape.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write, new")
    shape.add_argument("--seed", type=int, default=0, metavar="S", help="of the weights; default 0")
    shape.add_argument("--json", action="store_true", help="print one JSON object as the last line")
