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
        "--suite", default="micro", metavar="NAME|FILE", help="see docs/suites.md; default micro"
    )
    common.add_argument("--seed", type=int, default=0, metavar="S", help="of the generated items; default 0")
    common.add_argument(
        "--threads", type=positive, metavar="N", help="CPU threads; default one for each core"
    )
    common.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    answers = ArgumentParser(add_help=False)
    answers.add_argument("--items", type=positive, default=1000, metavar="N", help="default 1000")
    answers.add_argument(
        "--max-tokens", type=positive, default=16, metavar="N", help="of an answer; default 16"
    )
    answers.add_argument("--batch-size", type=positive, default=32, metavar="N", help="default 32")
    timing = ArgumentParser(add_help=False)
    timing.add_argument("--requests", type=positive, default=24, metavar="N", help="default 24")
    timing.add_argument("--repeats", type=positive, default=2, metavar="N", help="of each request; default 2")
    timing.add_argument(
        "--output-tokens", type=two, default=16, metavar="N", help="of each answer; default 16"
    )
    timing.add_argument(
        "--warmup", type=natural, default=2, metavar="N", help="requests thrown away; default 2"
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
        "--batch", type=positive, nargs="+", default=[], metavar="N", help="together, besides one at a time"
    )
    latency.add_argument("--price-per-hour", type=above_zero, metavar="X", help="of the machine; tells cost")
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
        "--context", type=positive, default=2048, metavar="N", help="for peak memory; default 2048"
    )
    compare.add_argument("--batch", type=positive, default=1, metavar="N", help="for peak memory; default 1")

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
        "--items", type=positive, default=24, metavar="N", help="that pass the layers; default 24"
    )

    plan = commands.add_parser("plan-n", help="how many items a margin of accuracy needs")
    plan.add_argument("--margin", type=float, default=2.0, metavar="POINTS", help="default 2")
    plan.add_argument(
        "--flips", type=float, default=5.0, metavar="PERCENT", help="of answers that turn; default 5"
    )
    plan.add_argument(
        "--loss", type=float, default=0.0, metavar="POINTS", help="that the candidate truly has; default 0"
    )
    plan.add_argument("--power", type=likely, default=0.8, metavar="P", help="chance of PASS; default 0.8")
    plan.add_argument("--confidence", type=likely, default=0.95, metavar="C", help="of PASS; default 0.95")
    plan.add_argument("--slices", type=positive, default=1, metavar="N", help="that must all pass; default 1")
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
    history.add_argument("--confidence", type=likely, default=0.99, metavar="C", help="default 0.99")
    history.add_argument(
        "--tolerance",
        type=float,
        default=2.0,
        metavar="PERCENT",
        help="latency and bytes may grow; default 2",
    )
    history.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    turns = ArgumentParser(add_help=False)
    turns.add_argument("--rounds", type=positive, default=3, metavar="N", help="default 3")
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
    peers.add_argument("--threads", type=positive, metavar="N", help="default one for each core")
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
        "trust", epilog=EXIT_CODES, help="is the gate right about models whose truth is known"
    )
    trust.add_argument(
        "--draws", type=positive, default=400, metavar="N", help="verdicts on each candidate; default 400"
    )
    trust.add_argument("--items", type=positive, default=1000, metavar="N", help="of a draw; default 1000")
    trust.add_argument(
        "--pool", type=positive, default=1440, metavar="N", help="different items to draw from; default 1440"
    )
    trust.add_argument(
        "--processes", type=natural, default=150, metavar="N", help="for memory; 0: not at all; default 150"
    )
    trust.add_argument("--accuracy-margin", type=float, default=2.0, metavar="POINTS", help="default 2")
    trust.add_argument("--slice-margin", type=float, default=10.0, metavar="POINTS", help="default 10")
    trust.add_argument("--latency-ratio", type=float, default=1.15, metavar="R", help="default 1.15")
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
    micro.add_argument(
        "--steps", type=positive, metavar="N", help="fewer give a worse model; default the recipe's"
    )
    micro.add_argument("--threads", type=positive, default=2, metavar="N", help="default 2")
    micro.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    shape = commands.add_parser("shape", help="write a random checkpoint of a real model's shape")
    shape.add_argument("shape", metavar="SHAPE", help="qwen3-vl-2b, -4b, -8b or -32b")
    shape.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write, new")
    shape.add_argument("--seed", type=int, default=0, metavar="S", help="of the weights; default 0")
    shape.add_argument("--json", action="store_true", help="print one JSON object as the last line")
