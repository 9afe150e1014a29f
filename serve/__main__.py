"""`python -m serve`: serve built variants, alone or as the arms of an experiment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engines.errors import UserError
from serve.arm.options import add_options
from serve.router import commands as router


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 error (2, usage, is argparse's)."""
    arguments = parser().parse_args(argv)
    commands = {
        "arm": _arm,
        "router": router.route,
        "up": router.up,
        "compile": router.compile_,
        "rollout": router.rollout,
        "report": router.report,
        "simulate": router.simulate,
        "schema": router.schema,
    }
    try:
        commands[arguments.command](arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'a socket'}: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python -m serve", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    add_options(commands.add_parser("arm", help="serve one artifact over the OpenAI API"))
    router.add_commands(commands)
    return top


def _arm(arguments: argparse.Namespace) -> None:
    from serve.arm.server import run

    run(arguments)


if __name__ == "__main__":
    sys.exit(main())
