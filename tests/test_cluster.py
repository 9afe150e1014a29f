"""Parts of a build on a cluster that need no cluster; tests/test_build.py builds on one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from build.cluster import _there, connected
from build.store import Entry, Store
from engines.errors import UserError
from tests.test_store import work, write


def read(store: Store, entry: Entry) -> str:
    return (entry.path / "folder" / "file.txt").read_text()


def test_a_node_fetches_what_another_has_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store", url=f"memory://{tmp_path}")
    entry = store.do(work(), write)
    shutil.rmtree(store.root)  # as on a machine with a disk of its own
    with pytest.raises(UserError, match=r"does not find .*; every node needs the checkout and --out"):
        _there(str(tmp_path), Store(store.root), read, entry)
    assert _there(str(tmp_path), store, read, entry) == "content"
    with pytest.raises(UserError, match=r"/nowhere: No such file or directory; every node needs"):
        _there("/nowhere", store, read, entry)


def test_without_ray_a_cluster_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(UserError, match="not installed; do: pip install"),
        connected("ray://h", Store(tmp_path), 0),
    ):
        pass
