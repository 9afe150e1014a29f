"""`python -m serve`: serve built variants, alone or as the arms of an experiment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engines.arguments import describe, exit_code, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 error (2, usage, is argparse's)."""
    words = sys.argv[1:] if argv is None else argv
    options = parse(parser(words[0] if words else ""), words)
    return exit_code(lambda: _run(options), "a socket")


def parser(command: str = "") -> argparse.ArgumentParser:
    """The commands and their options; of the arm or of the router only, where `command` is one of theirs."""
    top = argparse.ArgumentParser(
        prog="python -m serve", description="Serve built variants, alone or as the arms of an experiment."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    arm = commands.add_parser("arm", help="serve one artifact over the OpenAI API")
    if command in ("arm", ""):
        from serve.arm.options import add_options

        add_options(arm)
    if command != "arm":
        from serve.router.options import add_commands

        add_commands(commands)
    describe(commands)
    return top


def _run(options: argparse.Namespace) -> None:
    if options.command in ("arm", "router", "up"):
        from serve.open_files import allow_open_files

        allow_open_files()
    if options.command == "arm":
        from serve.arm.server import run

        run(options)
    else:
        from serve.router.commands import COMMANDS

        COMMANDS[options.command](options)


if __name__ == "__main__":
    sys.exit(main())
