"""As many open files as the system allows: two for each stream through a router."""

from __future__ import annotations

import resource

from engines.errors import UserError

LEAST = 64  # with fewer some libraries do not even load


def allow_open_files() -> None:
    """Raises the soft limit to the hard one. UserError where that is less than it takes to start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < LEAST:
        raise UserError(
            f"{hard} files may be open at once, expected at least {LEAST}: raise the limit (ulimit -Hn, "
            "LimitNOFILE= in systemd)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
