"""`python -m serve`: serve built variants, alone or as the arms of an experiment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engines.arguments import describe
from engines.errors import reason


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 error (2, usage, is argparse's)."""
    words = sys.argv[1:] if argv is None else argv
    options = parser(words[0] if words else "--help").parse_args(words)
    try:
        _run(options)
    except OSError as error:
        print(f"error: {error.filename or 'a socket'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except Exception as error:
        if (told := reason(error)) is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    return 0


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
        from serve.router.commands import add_commands

        add_commands(commands)
    describe(commands)
    return top


def _run(options: argparse.Namespace) -> None:
    if options.command == "arm":
        from serve.arm.server import run

        run(options)
    else:
        from serve.router.commands import COMMANDS

        COMMANDS[options.command](options)


if __name__ == "__main__":
    sys.exit(main())
