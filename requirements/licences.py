"""Writes licences.txt: the licence of every package in the lock, as an SPDX expression.

    .venv/bin/python requirements/licences.py

What a package says of itself comes first: its License-Expression, or else a short License or a classifier.
"""

from __future__ import annotations

import re
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path
from typing import cast

HERE = Path(__file__).resolve().parent
LOCKS = ("serve", "build", "dev")  # each holds the one before

# Licences as packages spell them, where that is not SPDX.
SPELLED = {
    "2-clause BSD": "BSD-2-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache License Version 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD License": "BSD-3-Clause",
    "GPL-3.0": "GPL-3.0-only",
    "GPLv2": "GPL-2.0-only",
    "ISC License": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "PSFL": "PSF-2.0",
    "Proprietary": "LicenseRef-NVIDIA",  # of the tensorrt packages, NVIDIA's own
    "Python Software Foundation License": "PSF-2.0",
}
# Packages whose metadata does not say, by the licence file they bring.
READ = {
    "python-dateutil": "Apache-2.0 OR BSD-3-Clause",
    "sigstore-models": "MIT",
    "tiktoken": "MIT",
    "uvloop": "MIT OR Apache-2.0",
}
SHORT = re.compile(r"[^\n]{1,60}")  # others are the licence's whole text


def licence(name: str) -> str:
    """Of an installed package. Raises ValueError where nothing is known of it."""
    told = cast(Message, distribution(name).metadata)
    classifiers = [line for line in told.get_all("Classifier") or [] if line.startswith("License ::")]
    stated = told.get("License") or ""
    if expression := told.get("License-Expression"):
        return str(expression)
    for found in (line.rpartition(" :: ")[2] for line in (READ.get(name, ""), stated, *classifiers)):
        if found and SHORT.fullmatch(found):
            return SPELLED.get(found, found)
    raise ValueError(f"{name} states no licence: read the one it brings, and add it to READ")


def locked(name: str) -> dict[str, str]:
    """Versions of a lock file by package."""
    lines = (HERE / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def table() -> str:
    """A line for each package: the smallest lock that has it, name, version, licence."""
    rows, seen = [], set[str]()
    for lock in LOCKS:
        for name, version in locked(lock).items():
            if name not in seen:
                rows.append(f"{lock:5} {name:41} {version:14} {licence(name)}\n")
        seen |= locked(lock).keys()
    return "# Lock, package, version, licence; written by requirements/licences.py.\n" + "".join(rows)


if __name__ == "__main__":
    (HERE / "licences.txt").write_text(table())
