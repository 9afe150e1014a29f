"""The one error a user is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input or environment. The message is one line: what was found, what was expected, what to do.

    Commands print it as ``error: <message>`` on stderr and exit 1; anything else that escapes is a bug. What
    it quotes may be anybody's: line breaks and the controls of a terminal are shown as their escapes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(
            "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        )
