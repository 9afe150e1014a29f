"""requirements/serve.txt is all that an arm needs, and it is small."""

from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from tests.conftest import ROOT
from tests.environments import installed, link_packages
from tests.live_arm import built, live_arm

LIMIT = 400_000_000


@pytest.fixture(scope="module")
def names() -> list[str]:
    lines = (ROOT / "requirements" / "serve.txt").read_text().splitlines()
    return [line.partition("==")[0] for line in lines if not line.startswith("#")]


def test_it_is_small(names: list[str]) -> None:
    sizes = {name: sum(path.stat().st_size for path in installed(name)) for name in names}
    total = sum(sizes.values())
    print(f"{total / 1e6:.0f} MB", sorted(sizes.items(), key=lambda pair: -pair[1])[:5])
    assert 50e6 < total <= LIMIT


def test_an_arm_runs_on_it_alone(names: list[str], micro_checkpoint: Path, tmp_path: Path) -> None:
    """Python without its site-packages, but for links to what the lock names."""
    packages = tmp_path / "packages"
    packages.mkdir()
    link_packages(names, packages)
    artifact = built(micro_checkpoint, tmp_path / "arm")
    body = {
        "messages": [{"role": "user", "content": "Code of Zafolo?"}],
        "response_format": {"type": "json_object"},
    }
    with live_arm(artifact, python=("-S",), PYTHONPATH=str(packages)) as arm:
        found = httpx2.post(f"{arm.url}/v1/chat/completions", json=body | {"max_tokens": 5}, timeout=30)
        assert found.status_code == 200
        assert httpx2.get(arm.url).status_code == 200
        assert "torch" not in Path(f"/proc/{arm.process.pid}/maps").read_text()
