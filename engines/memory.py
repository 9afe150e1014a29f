"""What a process may still take: of the machine's memory, of its control groups', of its address space."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

from engines.errors import UserError
from engines.units import human_size

LIMIT, USED, PAGES = "memory.max", "memory.current", "inactive_file"
OLD = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")  # of cgroup v1
ADDRESSES = 2_000_000_000  # bytes that torch and the libraries around it map, little of it ever used


def available_memory() -> int:
    """Bytes this process may still take: the machine's, or what its groups and limits leave of them."""
    meminfo = Path("/proc/meminfo").read_text()
    free = 1024 * int(meminfo.split("MemAvailable:")[1].split()[0])
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addresses != resource.RLIM_INFINITY:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        free = min(free, addresses - mapped)
    groups = Path("/proc/self/cgroup").read_text()
    return max(0, min([free, *left(groups, Path("/sys/fs/cgroup"))]))


def check_address_space() -> None:
    """UserError where torch might not load: without room some libraries abort, and some try for ever."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < ADDRESSES:
        raise UserError(
            f"the address space is limited to {human_size(limit)} (ulimit -v), expected at least "
            f"{human_size(ADDRESSES)}: raise it; a container's limit counts what is really used"
        )


def left(groups: str, mounted: Path) -> Iterator[int]:
    """What each group that this process is in leaves, inner ones first. Pages of files that nobody needs are
    counted as used, and given back when memory is short.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = OLD if controllers else (LIMIT, USED, PAGES)
        root = mounted / controllers
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):  # a container may not see those that it is in
            if folder.is_relative_to(root) and (folder / names[0]).is_file():
                yield from _left_by(folder, *names)


def _left_by(folder: Path, limit: str, used: str, pages: str) -> Iterator[int]:
    try:
        most, taken = (folder / limit).read_text().strip(), int((folder / used).read_text())
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return
    if most != "max":
        yield int(most) - taken + int(counts.get(pages, 0))
