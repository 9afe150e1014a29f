"""docs/tour.md, run: build, publish, pull, select, serve, roll out, roll back, report; every part is real."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from engines.ports import free_port
from tests.conftest import ROOT
from tests.environments import link_packages
from tests.oci_registry import oci_registry

TOUR = (ROOT / "docs" / "tour.md").read_text()
ARM = re.compile(r"gptq-int4-onnx|onnx-fp16")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
PATIENCE_S = 1800


class Step(NamedTuple):
    """A command of the page, the machine it is typed on, and what is printed there."""

    machine: str
    command: str
    printed: str


def steps() -> list[Step]:
    blocks = re.findall(r"^```console\n(.*?)^```", TOUR, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^(build|serve)\$ (.*)\n", "".join(blocks), flags=re.MULTILINE)
    assert not parts[0], "a block begins with a prompt"
    return [Step(*parts[at : at + 3]) for at in range(1, len(parts), 3)]


def files() -> dict[str, str]:
    """Blocks whose first line says which file they are."""
    blocks = re.findall(r"^```\w+\n(# ([a-z]+\.[a-z]+).*?)^```", TOUR, re.MULTILINE | re.DOTALL)
    return {name: text for text, name in blocks}


def bare(text: str) -> str:
    """Without figures, digests and the widths of columns, which differ from run to run."""
    return " ".join(re.sub(r"\d+(\.\d+)*", "#", DIGEST.sub("#", text)).split())


def pattern(printed: str) -> str:
    return ".*".join(map(re.escape, re.split(r"\s*…\s*", bare(printed))))


@contextmanager
def background(command: str, folder: Path, printed: str) -> Iterator[None]:
    """A command that ends with `&`, once it has printed what the page says."""
    output = folder / "output.txt"
    with output.open("w") as file:
        process = subprocess.Popen(
            ["bash", "-c", "exec " + command.removesuffix("&")], cwd=folder, stdout=file, stderr=file
        )
    try:
        until = time.monotonic() + PATIENCE_S
        while not re.search(pattern(printed), bare(output.read_text()), re.DOTALL):
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < until, output.read_text()
            time.sleep(0.1)
        yield
        assert process.poll() is None, output.read_text()
    finally:
        process.terminate()
        process.wait(60)


def machines(folder: Path) -> dict[str, Path]:
    """Two checkouts as far as commands see them: one with this environment, one with what serving needs."""
    found = {name: folder / name for name in ("build", "serve")}
    for checkout in found.values():
        checkout.mkdir()
        for package in ("bench", "build", "engines", "quantize", "serve"):
            (checkout / package).symlink_to(ROOT / package)
    (found["build"] / ".venv").symlink_to(sys.prefix)
    lock = runpy.run_path(str(ROOT / "requirements" / "lock.py"))
    venv.create(found["serve"] / ".venv", symlinks=True)
    (packages,) = found["serve"].glob(".venv/lib/*/site-packages")
    link_packages(lock["closure"]([*lock["declared"]()["serve"], "model-signing", "pyOpenSSL"]), packages)
    return found


def test_the_tour(tmp_path: Path) -> None:
    """Every command of the page in the page's order; each prints what the page says."""
    here = machines(tmp_path)
    (tmp_path / "registry").mkdir()
    with ExitStack() as running:
        actual = {"127.0.0.1:5000": running.enter_context(oci_registry(tmp_path / "registry"))}
        actual |= {port: str(free_port()) for port in ("8080", "8081", "8082", "8083", "8090")}

        def real(text: str) -> str:
            return re.sub("|".join(map(re.escape, actual)), lambda found: actual[found[0]], text)

        for name, text in files().items():
            for machine in here.values():
                (machine / name).write_text(real(text))
        (here["serve"] / "key.pub").symlink_to(here["build"] / "key.pub")
        for machine, command, printed in steps():
            if command.endswith("&"):
                running.enter_context(background(real(command), here[machine], printed))
                continue
            done = subprocess.run(
                ["bash", "-c", real(command)],
                cwd=here[machine],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            print(f"{machine}$ {command}\n{done.stdout}", end="")
            assert done.returncode == 0, done.stderr
            if " select " in command:  # which arm is the faster was measured: a figure like others
                printed, done.stdout = (ARM.sub("#", text) for text in (printed, done.stdout))
            assert re.fullmatch(pattern(printed), bare(done.stdout), re.DOTALL), (printed, done.stdout)
            actual |= zip(DIGEST.findall(printed), DIGEST.findall(done.stdout), strict=True)
