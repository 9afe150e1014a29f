"""`python -m bench`: score, time and compare checkpoints and artifacts; make the checkpoints to do it on."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from bench.options import add_models
from bench.server_options import add_servers
from engines.arguments import describe, exit_code, parse

MODULES = {
    "latency": "bench.timing",
    "load": "bench.server_commands",
    "open-loop": "bench.server_commands",
    "compare": "bench.comparison",
    "history": "bench.history.commands",
    "trust": "bench.trust.commands",
    "endurance": "bench.endurance.commands",
}


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Score, time and compare checkpoints and artifacts; make the checkpoints to do it on.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_models(commands)
    add_servers(commands)
    describe(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code; usage errors are argparse's."""
    options = parse(parser(), arguments)

    def command() -> int:
        commands = importlib.import_module(MODULES.get(options.command, "bench.commands"))
        return int(getattr(commands, options.command.replace("-", "_"))(options))

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
