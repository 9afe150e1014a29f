"""Environments of a few packages, without installing anything: links to what is installed here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path


def installed(name: str) -> list[Path]:
    """Every file of a distribution, compiled ones too."""
    return [found for file in distribution(name).files or () if (found := Path(str(file.locate()))).is_file()]


def link_packages(names: Iterable[str], packages: Path) -> None:
    """Links the distributions' files into a folder that is to stand for site-packages."""
    for name in names:
        site = Path(str(distribution(name).locate_file("")))
        for top in {path.relative_to(site).parts[0] for path in installed(name) if path.is_relative_to(site)}:
            link = packages / top
            if not link.exists() and top != "__pycache__":
                link.symlink_to(site / top)
