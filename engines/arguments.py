"""What the command lines have in common."""

from __future__ import annotations

import argparse
from typing import Any


def describe(commands: Any) -> None:
    """Gives the `--help` of each command the sentence that stands beside its name in the list of commands."""
    for listed in commands._choices_actions:
        command: argparse.ArgumentParser = commands.choices[listed.dest]
        command.description = f"{listed.help[:1].upper()}{listed.help[1:]}."
