"""Where a checkpoint comes from: the embedded one, a folder, or a hub id at a pinned revision."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from build.code import ROOT
from engines.errors import UserError

EMBEDDED = ROOT / "bench" / "micro" / "checkpoint"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+@[\w.-]+")


@dataclass(frozen=True)
class Source:
    """A checkpoint on this machine. ``name`` is the folder its variants are published under."""

    path: Path
    name: str
    repo: str
    revision: str | None
    license: str | None


def resolve(model: str) -> Source:
    """Finds ``embedded``, a folder, or ``HUB_ID@REVISION`` (downloaded to the hub's own cache)."""
    if model == "embedded":
        return Source(EMBEDDED, "qwen3-vl-micro", "embedded", None, "Apache-2.0")
    path = Path(model).expanduser()
    if path.is_dir():
        path = path.resolve()
        return Source(path, path.name, path.name, None, _license(path))
    if path.exists():
        raise UserError(f"--model {model} is a file, expected the folder of a Hugging Face checkpoint")
    if HUB_ID.fullmatch(model):
        repo, revision = model.split("@")
        path = _download(repo, revision)
        return Source(path, repo.split("/")[1], repo, revision, _license(path))
    raise UserError(
        f"--model {model}: no such folder; expected a checkpoint folder, HUB_ID@REVISION, or `embedded`"
    )


def _download(repo: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.jinja", "*.safetensors", "README.md", "LICENSE*"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"cannot download {repo} at {revision} ({reason}); give a local folder with --model DIR"
        ) from None


def _license(path: Path) -> str | None:
    """The licence a model card declares in its front matter."""
    card = path / "README.md"
    match = (
        re.search(r"^license:\s*(\S+)", card.read_text(errors="replace"), re.MULTILINE)
        if card.is_file()
        else None
    )
    return match[1] if match else None


def project_revision() -> dict[str, Any]:
    """Commit of this project and whether its checkout had changes; nothing where it is not a git checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(git("status", "--porcelain"))} if commit else {}
