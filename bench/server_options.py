"""The options of commands that ask servers: of OpenAI's API, and routers."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from bench.options import EXIT_CODES
from engines.arguments import above_zero, natural, positive, two


def add_servers(commands: Any) -> None:
    """Adds load, open-loop, router and endurance to `python -m bench`."""
    load = commands.add_parser("load", help="load a server of OpenAI's API with many clients at once")
    load.add_argument("url", metavar="URL", help="as in http://127.0.0.1:8080")
    load.add_argument(
        "--clients",
        type=positive,
        nargs="+",
        default=[1, 8],
        metavar="N",
        help="at once, a round for each number; default 1 8",
    )
    load.add_argument(
        "--seconds", type=positive, default=30, metavar="S", help="length of a round; default 30"
    )
    load.add_argument(
        "--image-size",
        type=positive,
        default=448,
        metavar="PIXELS",
        help="width and height of a picture; default 448",
    )
    _questions(load)

    arrivals = commands.add_parser(
        "open-loop",
        epilog=EXIT_CODES,
        help="load several servers by one schedule of arrivals, which waits for nobody",
    )
    arrivals.add_argument("urls", nargs="+", metavar="URL", help="the first is the baseline")
    arrivals.add_argument(
        "--rates",
        type=above_zero,
        nargs="+",
        default=[0.25, 0.5, 0.75],
        metavar="F",
        help="fractions of what the first answers one by one; default 0.25 0.5 0.75",
    )
    arrivals.add_argument(
        "--requests", type=two, default=40, metavar="N", help="requests of a round; default 40"
    )
    arrivals.add_argument(
        "--rounds", type=positive, default=2, metavar="N", help="turns of every server; default 2"
    )
    arrivals.add_argument(
        "--image-size",
        type=positive,
        nargs="+",
        default=[224, 448],
        metavar="PIXELS",
        help="width and height of a picture, one of these; default 224 448",
    )
    arrivals.add_argument(
        "--latency-ratio",
        type=above_zero,
        default=1.15,
        metavar="R",
        help="how many times as long as the first others may take; default 1.15",
    )
    _questions(arrivals)

    router = commands.add_parser("router", help="measure the router beside other proxies")
    router.add_argument(
        "--peers",
        nargs="+",
        default=["nginx", "haproxy"],
        choices=("nginx", "haproxy", "envoy"),
        metavar="PEER",
        help="proxies beside it: nginx, haproxy, envoy; default the first two",
    )
    router.add_argument(
        "--requests", type=positive, default=3000, metavar="N", help="requests of a round; default 3000"
    )
    router.add_argument(
        "--streams", type=natural, default=5000, metavar="N", help="streams held at once; default 5000"
    )
    router.add_argument(
        "--rounds", type=positive, default=15, metavar="N", help="turns of every proxy; default 15"
    )
    router.add_argument(
        "--rollbacks",
        type=natural,
        default=20,
        metavar="N",
        help="rollbacks to time while 500 streams run; default 20",
    )
    router.add_argument(
        "--work",
        type=Path,
        default=Path("artifacts/.router-bench"),
        metavar="DIR",
        help="keeps configurations and logs; default artifacts/.router-bench",
    )
    router.add_argument("--json", action="store_true", help="print one JSON object as the last line")

    endurance = commands.add_parser(
        "endurance",
        epilog=EXIT_CODES,
        help="load a router and two arms for an hour, and judge what is lost and what grows",
    )
    endurance.add_argument(
        "--minutes", type=above_zero, default=60.0, metavar="N", help="length of the run; default 60"
    )
    endurance.add_argument(
        "--artifacts",
        type=Path,
        nargs=2,
        metavar="DIR",
        help="candidate and baseline; default the embedded checkpoint's, built where they are not",
    )
    endurance.add_argument(
        "--rate", type=above_zero, default=3.0, metavar="R", help="requests a second; default 3"
    )
    endurance.add_argument(
        "--seed",
        type=natural,
        default=0,
        metavar="S",
        help="of requests, and of when what is done; default 0",
    )
    endurance.add_argument(
        "--work", type=Path, metavar="DIR", help="keeps logs and state, new; default a temporary one"
    )
    endurance.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _questions(command: ArgumentParser) -> None:
    """What a server is asked."""
    command.add_argument(
        "--output-tokens", type=two, default=32, metavar="N", help="length of every answer; default 32"
    )
    command.add_argument(
        "--images",
        type=natural,
        default=30,
        metavar="PERCENT",
        help="requests that show a picture; default 30",
    )
    command.add_argument("--seed", type=natural, default=0, metavar="S", help="of the questions; default 0")
    command.add_argument("--api-key-file", type=Path, metavar="FILE", help="the key that the server asks for")
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line")
