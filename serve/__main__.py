"""``python -m serve``: variants under traffic."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from engines.errors import UserError
from serve.router.commands import add_commands


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(prog="python -m serve", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_commands(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code; usage errors are argparse's."""
    options = parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'a socket'}: {error.strerror or error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
