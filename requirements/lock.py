"""Writes serve.txt, build.txt and dev.txt: installed versions of all that pyproject.toml asks for, and needs.

    .venv/bin/python requirements/lock.py

Install what you want locked first; the versions written are those that were tested here.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent


def declared() -> dict[str, list[str]]:
    """Requirements of pyproject.toml by lock file."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = [line for line in extras["dev"] if not line.startswith(project["name"])]
    serve = project["dependencies"]
    parts = ("build", "suites", "tensorrt", "otlp", "publish")
    build = [*serve, *(line for name in parts for line in extras[name])]
    return {"serve": serve, "build": build, "dev": [*build, *extras["s3"], *extras["ray"], *own]}


def closure(requirements: Iterable[str]) -> dict[str, str]:
    """Installed version of every requirement and of all it needs, by canonical name."""
    versions: dict[str, str] = {}
    seen: dict[str, set[str]] = {}  # extras of each, that of none included
    waiting = [Requirement(line) for line in requirements]
    while waiting:
        requirement = waiting.pop()
        name, extras = canonicalize_name(requirement.name), {"", *requirement.extras}
        if extras <= seen.get(name, set()):
            continue
        seen[name] = extras | seen.get(name, set())
        found = distribution(requirement.name)
        versions[name] = found.version.partition("+")[0]  # +cpu names a build of torch, not a version of it
        for needed in map(Requirement, found.requires or []):
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return versions


def text(requirements: Iterable[str]) -> str:
    """The content of a lock file, its lines in order."""
    lines = sorted(f"{package}=={version}\n" for package, version in closure(requirements).items())
    return "# Exact versions; written by requirements/lock.py.\n" + "".join(lines)


def main() -> None:
    for name, requirements in declared().items():
        (HERE / f"{name}.txt").write_text(text(requirements))


if __name__ == "__main__":
    main()
