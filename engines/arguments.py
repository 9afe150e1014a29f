"""What the command lines have in common: numbers within bounds, a sentence for every command, its end."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from engines.errors import reason


def parse(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line, by default this process's; without any the help is the usage error."""
    words = sys.argv[1:] if words is None else words
    if not words:
        parser.print_help(sys.stderr)
        sys.exit(2)
    options, unknown = parser.parse_known_args(words)
    if unknown:
        import difflib

        command = _command(parser, options)
        near = difflib.get_close_matches(unknown[0].partition("=")[0], command._option_string_actions, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return options


def _command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> argparse.ArgumentParser:
    """The parser of the command that was named."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found: argparse.ArgumentParser = action.choices[options.command]
            return found
    return parser


def exit_code(command: Callable[[], int | None], output: object = "output", *, resumes: bool = False) -> int:
    """The exit code of a command: 1 and one line on stderr for what is no bug, 130 for Ctrl-C.

    output: what an error of the system that names no file is about. resumes: whether what was done stays.
    """
    again = "; run the same command again to go on from here" if resumes else ""
    mend = "; nothing already built was lost: mend this and run the same command again" if resumes else ""
    try:
        code = command() or 0
        sys.stdout.flush()  # where a full disk is still told in a line
        return code
    except KeyboardInterrupt:
        code, told = 130, f"interrupted{again}"
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 1
        code, told = 1, f"{error.filename or output}: {error.strerror or error}{mend}"
    except Exception as error:
        if (line := reason(error)) is None:
            raise
        code, told = 1, line
    print(f"error: {told}", file=sys.stderr)
    return code


def _nobody_reads() -> bool:
    """Whether stdout's reader has seen enough, as `head` has; then Python's last flush is kept quiet too."""
    stdout = select.poll()
    stdout.register(1, 0)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in stdout.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return gone


def describe(commands: Any) -> None:
    """Gives the `--help` of each command the sentence that stands beside its name in the list of commands."""
    for listed in commands._choices_actions:
        command: argparse.ArgumentParser = commands.choices[listed.dest]
        command.description = f"{listed.help[:1].upper()}{listed.help[1:]}."


def positive(text: str) -> int:
    return _whole(text, 1)


def natural(text: str) -> int:
    return _whole(text, 0)


def two(text: str) -> int:
    return _whole(text, 2)


def above_zero(text: str) -> float:
    return _between(text, 0, inf, "a number above 0")


def likely(text: str) -> float:
    return _between(text, 0.5, 1, "a chance between 0.5 and 1")


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number of at least {least}")
    return int(text)


def _between(text: str, low: float, high: float, expected: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = low
    if not low < found < high:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
    return found
