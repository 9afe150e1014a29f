"""Images built and run without a container engine: overlays, mount namespaces and chroot, as root.

This machine's own file system stands in for every base image, as a layer that is never written to. A stage's
steps are carried out as the Dockerfile has them, each stage into a layer of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from string import Template
from typing import NamedTuple

import pytest

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Image:
    """Layers, the topmost first, and what a container of it is started with."""

    layers: tuple[Path, ...] = ()
    env: Mapping[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "0:0"
    workdir: str = "/"
    command: tuple[str, ...] = ()


class Mount(NamedTuple):
    source: Path
    target: str
    read_only: bool = True


def require_namespaces() -> None:
    """Skips where this user may not mount, but in CI, where it must."""
    done = subprocess.run(
        ["unshare", "--mount", "mount", "--bind", "/", "/mnt"], capture_output=True, check=False
    )
    if done.returncode and not os.environ.get("CI"):
        pytest.skip("mount namespaces need root")
    assert not done.returncode, done.stderr


class Dockerfile:
    """Builds targets of a Dockerfile below `out`. `built`: stages that are there already."""

    def __init__(self, file: Path, out: Path, args: Mapping[str, str], built: Mapping[str, Image]) -> None:
        text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
        steps = [line.split(None, 1) for line in text.splitlines() if line.strip()]
        self._context, self._out, self._args, self._built = file.parent, out, dict(args), dict(built)
        self._stages: dict[str, tuple[str, list[list[str]]]] = {}
        current: list[list[str]] = []
        for instruction, rest in steps:
            if instruction == "FROM":
                parent, _, name = rest.split()
                current = []
                self._stages[name] = (Template(parent).substitute(self._args), current)
            elif instruction == "ARG" and not self._stages:
                name, _, default = rest.partition("=")
                self._args.setdefault(name, default)
            else:
                current.append([instruction, rest])

    def build(self, target: str) -> Image:
        """The image of a stage, and of those it is made from."""
        if target not in self._stages:  # a base image
            return Image()
        if target not in self._built:
            parent, steps = self._stages[target]
            image = self.build(parent)
            layer = self._out / target
            layer.mkdir(parents=True)
            image = replace(image, layers=(layer, *image.layers))
            for instruction, rest in steps:
                image = self._step(image, instruction, rest)
            self._built[target] = image
        return self._built[target]

    def _step(self, image: Image, instruction: str, rest: str) -> Image:
        match instruction:
            case "ENV":
                pairs = dict(pair.split("=", 1) for pair in shlex.split(rest))
                values = {name: Template(text).substitute(image.env) for name, text in pairs.items()}
                return replace(image, env={**image.env, **values})
            case "WORKDIR":
                return replace(image, workdir=rest)
            case "USER":
                return replace(image, user=rest)
            case "CMD":
                return replace(image, command=tuple(json.loads(rest)))
            case "RUN":
                self._run(image, rest)
            case "COPY":
                self._copy(image, *rest.split())
            case "ARG":
                assert rest.endswith("="), "without a default it is not set"
            case _:
                raise AssertionError(f"{instruction} is not known here")
        return image

    def _run(self, image: Image, rest: str) -> None:
        flags = [
            dict(pair.split("=") for pair in flag.split(",")) for flag in re.findall(r"--mount=(\S+)", rest)
        ]
        mounts = [
            Mount(self._context / flag["source"], flag["target"]) for flag in flags if flag["type"] == "bind"
        ]
        shell = ["sh", "-c", re.sub(r"--mount=\S+\s*", "", rest)]
        # How packages are reached is told in variables; bytecode is left to be made when needed.
        reached = {
            name: value for name, value in os.environ.items() if re.match("PIP_|SSL_|.*_proxy$", name, re.I)
        }
        environment = {"HOME": "/root", **image.env, **reached, "PIP_NO_COMPILE": "1"}
        line = enter(
            replace(image, env=environment),
            shell,
            self._out / "run",
            mounts=mounts,
            writes_to=image.layers[0],
        )
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"RUN {rest}\n{done.stdout}{done.stderr}"

    def _copy(self, image: Image, *words: str) -> None:
        source, target = words[-2:]
        if words[0].startswith("--from="):
            other = self.build(words[0].removeprefix("--from="))
            (found,) = [path for layer in other.layers if (path := layer / source.lstrip("/")).exists()]
            into = image.layers[0] / target.lstrip("/")
            into.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--archive", "--link", found, into], check=True)
            return
        assert source == "."
        rules = [
            line for line in (self._context / ".dockerignore").read_text().splitlines() if line[:1] != "#"
        ]
        deep = shutil.ignore_patterns(*(rule.removeprefix("**/") for rule in rules if rule.startswith("**/")))
        for path in self._context.iterdir():
            matching = [rule for rule in rules if fnmatch(path.name, rule.removeprefix("!"))]
            if matching[-1].startswith("!"):
                into = image.layers[0] / target.lstrip("/") / path.name
                into.parent.mkdir(exist_ok=True)
                shutil.copytree(path, into, ignore=deep) if path.is_dir() else shutil.copy(path, into)


def _put_python(layer: Path) -> None:
    """This interpreter where Python's images have theirs, and for every user."""
    programs = layer / "usr" / "local" / "bin"
    if programs.exists():
        return
    programs.mkdir(parents=True)
    interpreter = Path(sys.base_prefix) / "bin" / "python3"
    # Not a link: Python would look for its library beside that.
    (programs / "python").write_text(f'#!/bin/sh\nexec {interpreter} "$@"\n')
    (programs / "python").chmod(0o755)
    for parent in interpreter.parents:
        if not parent.stat().st_mode & 0o001:
            (layer / parent.relative_to("/")).mkdir(mode=0o711, parents=True)


def enter(
    image: Image,
    command: Sequence[str],
    scratch: Path,
    *,
    mounts: Sequence[Mount] = (),
    writes_to: Path | None = None,
    hosts: str = "",
) -> list[str]:
    """A command line that becomes `command` in a container of `image`, whose files end with it.

    Its root file system is read-only, /tmp is its own, and it has no capability; with `writes_to` it is built
    instead: root, and what it writes goes to that layer. `scratch` is any folder of its own.
    """
    folders = machine, python, top, root, *work = [
        scratch / name for name in ("machine", "python", "top", "root", "a", "b")
    ]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    _put_python(python)
    for mount in mounts:  # places to mount at, as an engine makes them
        place = top / mount.target.lstrip("/")
        place.mkdir(parents=True, exist_ok=True) if mount.source.is_dir() else _touch(place)
    if hosts:
        _touch(top / "etc" / "hosts").write_text(hosts)
    (top / "tmp").mkdir(parents=True, exist_ok=True)
    lower = [str(layer) for layer in (top, *image.layers, machine) if layer != writes_to]
    options = f"lowerdir={':'.join(lower)}"
    if writes_to:
        options += f",upperdir={writes_to},workdir={work[1]}"
    # Two overlays, since a layer must not lie within another layer of its own.
    script = [f"mount -t overlay overlay -o lowerdir=/,upperdir={python},workdir={work[0]} {machine}"]
    script.append(f"mount -t overlay overlay -o {options} {root}")
    script += [f"mount --rbind /{name} {root}/{name}" for name in ("proc", "dev")]
    if not writes_to:
        script.append(f"mount -t tmpfs tmpfs {root}/tmp")
    for source, target, read_only in mounts:
        script.append(f"mount --bind {source} {root}{target}")
        if read_only:
            script.append(f"mount -o remount,bind,ro {root}{target}")
    user, _, group = image.user.partition(":")
    drop = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all", "--clear-groups"]
    drop += [f"--reuid={user}", f"--regid={group}"]
    variables = [f"{name}={value}" for name, value in image.env.items()]
    words = ["chroot", str(root), *([] if writes_to else drop), "env", "-i", f"--chdir={image.workdir}"]
    script.append("exec " + shlex.join([*words, *variables, *command]))
    return ["unshare", "--mount", "sh", "-euc", "\n".join(script)]


def _touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path
