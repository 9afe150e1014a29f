"""Makes what the peers need, once: their virtual environments and the checkpoint in their formats."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.peers.catalogue import Conversion, Environment
from engines.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DONE = ".done.json"  # in a finished folder: what it was made from


def interpreter(environment: Environment | None, folder: Path, tell: Callable[[str], None]) -> Path:
    """The environment's python, installed below `folder` if it is not yet; ours for None.

    Raises UserError with the installer's last line.
    """
    if environment is None:
        return Path(sys.executable)
    home = folder / environment.name
    python, wanted = home / "bin" / "python", [*environment.requirements, environment.source]
    if _made_from(home) == wanted:
        return python
    tell(f"installing {environment.name}")
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True, symlinks=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    if environment.requirements:
        _run([*pip, "install", *environment.requirements], home / "pip.log", environment.name)
    if environment.source:
        sources = home / "source"
        options = ["--no-deps", "--no-binary", ":all:", "--dest", str(sources)]
        _run([*pip, "download", *options, environment.source], home / "download.log", environment.name)
        archive = next(sources.glob("*.tar.gz"))
        with tarfile.open(archive) as packed:
            packed.extractall(sources, filter="data")
        # ggml is compiled for the instructions of this very CPU.
        _run(
            [*pip, "install", str(archive)],
            home / "build.log",
            environment.name,
            {"CMAKE_ARGS": f"-DGGML_NATIVE=ON {os.environ.get('CMAKE_ARGS', '')}".strip()},
        )
    (home / DONE).write_text(json.dumps(wanted))
    return python


def converted(
    conversion: Conversion | None, checkpoint: Path, folder: Path, tell: Callable[[str], None]
) -> Path:
    """The checkpoint as `conversion` makes it, below `folder`, made now if it is not yet; itself for None.

    Raises UserError with the script's last line.
    """
    if conversion is None:
        return checkpoint
    sources = [converted(source, checkpoint, folder, tell) for source in conversion.sources]
    script = Path(__file__).parent / "converters" / f"{conversion.script}.py"
    wanted = [_fingerprint(checkpoint), hashlib.sha256(script.read_bytes()).hexdigest(), *conversion.options]
    out = folder / "models" / checkpoint.resolve().name / conversion.name
    if _made_from(out) == wanted:
        return out
    python = interpreter(conversion.environment, folder, tell)
    tell(f"converting to {conversion.name}")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    module = f"bench.peers.converters.{conversion.script}"
    command = [str(python), "-m", module, *map(str, sources), str(out), *conversion.options]
    # A finished folder holds the engine's files only.
    log = out.with_name(f"{conversion.name}.log")
    _run(command, log, f"converting to {conversion.name}")
    (out / DONE).write_text(json.dumps(wanted))
    return out


def child_environment() -> dict[str, str]:
    """The environment of a script run by another interpreter: it finds this repository and no hub."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def _run(command: Sequence[str], log: Path, what: str, extra: dict[str, str] | None = None) -> None:
    # Scripts of an environment call its other programs by name.
    paths = os.pathsep.join((str(Path(command[0]).parent), os.environ.get("PATH", "")))
    with log.open("w") as file:
        done = subprocess.run(
            command,
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env={**child_environment(), "PATH": paths, **(extra or {})},
        )
    if done.returncode:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        raise UserError(f"{what} failed: {lines[-1].strip()[:200] if lines else done.returncode}; see {log}")


def _made_from(folder: Path) -> object:
    return json.loads((folder / DONE).read_text()) if (folder / DONE).is_file() else None


def _fingerprint(checkpoint: Path) -> str:
    """Changes when a weight file or the configuration does, without reading gigabytes."""
    files = sorted([*checkpoint.glob("*.safetensors"), checkpoint / "config.json"])
    status = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(status).encode()).hexdigest()
