"""Killed at any moment and run again: the same result, nothing lost, nothing left lying about."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from build.publish import publish, published, verify
from build.store import Entry, Store, Work
from engines.artifact import Manifest, write_json
from tests.crashes import killed, tree


def moments() -> Iterator[int]:
    """1, 2, 3, …: to be left when one comes too late."""
    for moment in count(1):
        assert moment < 300, "it never ends"
        yield moment


def work(size: int = 1) -> Work:
    return Work("test", "a", {"size": size}, {"x": "sha256:1"}, convert, ("numpy",), variant="a")


def convert(out: Path, scratch: Path) -> dict[str, Any]:
    """Two steps, of which the first is kept in the scratch folder."""
    if not (scratch / "first.json").is_file():
        write_json(scratch / "first.json", ["first"])
    (out / "folder").mkdir(parents=True)
    (out / "folder" / "weights.bin").write_bytes((scratch / "first.json").read_bytes() * 9)
    write_json(out / "config.json", {"a": 1})
    return {}


def do(root: Path) -> Entry:
    return Store(root).do(work(), convert)


def test_killed_anywhere_a_work_is_done_whole_the_next_time(tmp_path: Path) -> None:
    undisturbed = do(tmp_path / "undisturbed")
    for moment in moments():
        root = tmp_path / str(moment)
        root.mkdir()
        if not killed(moment, root, do, root):
            break
        found = Store(root).find(work())
        assert not isinstance(found, Entry) or found.digest == undisturbed.digest
        assert do(root).digest == undisturbed.digest
        expected = set(tree(tmp_path / "undisturbed"))
        assert set(tree(root)) == expected
    assert moment > 15


def test_killed_anywhere_a_damaged_work_is_mended_the_next_time(tmp_path: Path) -> None:
    for moment in moments():
        root = tmp_path / str(moment)
        entry = do(root)
        weights = entry.path / "folder" / "weights.bin"
        weights.chmod(0o644)
        weights.write_bytes(b"damaged")
        if not killed(moment, root, do, root):
            break
        assert do(root).digest == entry.digest
        assert isinstance(Store(root).find(work()), Entry)
    assert moment > 15
