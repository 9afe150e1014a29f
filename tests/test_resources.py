"""Bytes on disk and peak memory of a fresh process; failures there come back as one line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from bench.resources import REQUESTS, disk_bytes, peak_memory, question, resident_peak
from engines.config import ModelConfig
from engines.errors import UserError


def test_each_inode_counts_once(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"x" * 1000)
    (tmp_path / "sub" / "b").write_bytes(b"y" * 234)
    os.link(tmp_path / "a", tmp_path / "sub" / "hard")
    (tmp_path / "soft").symlink_to("a")
    assert disk_bytes(tmp_path) == 1234


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_files_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        disk_bytes(tmp_path / name)


def test_peak_memory_is_that_of_the_fresh_process(micro_checkpoint: Path) -> None:
    """What this process holds, here 1 GB besides, is not the child's."""
    ballast = np.ones(10**9, np.uint8)
    found = peak_memory(micro_checkpoint, context=256, batch=2)
    assert (found.context, found.batch, found.image_tokens) == (256, 2, 121)
    assert found.before_loading_bytes < found.peak_memory_bytes < ballast.nbytes < resident_peak()
    assert len(found.resident_bytes) == REQUESTS
    assert max(found.resident_bytes) <= found.peak_memory_bytes
    # torch alone takes more than 100 MB
    assert found.peak_memory_bytes > found.before_loading_bytes + 100 * 10**6


@pytest.mark.parametrize(("length", "tokens"), [(4000, 196), (300, 144), (2, 1), (1, 0)])
def test_the_question_asks_about_an_image_that_fits(micro_checkpoint: Path, length: int, tokens: int) -> None:
    config = ModelConfig.load(micro_checkpoint)
    found = question(config, length)
    assert len(found.input_ids) == length
    assert (found.input_ids == config.image_token_id).sum() == tokens
    patches = [media.grid[1] * media.grid[2] for media in found.media]
    assert patches == ([4 * tokens] if tokens else [])
    assert [len(media.pixels) for media in found.media] == patches


@pytest.mark.parametrize(
    ("context", "says"), [(10**6, "beyond the model's"), (2, "expected more than 4 tokens")]
)
def test_what_the_child_says_comes_back_in_one_line(micro_checkpoint: Path, context: int, says: str) -> None:
    with pytest.raises(UserError, match=f"at context {context} x batch 1: .*{says}") as error:
        peak_memory(micro_checkpoint, context=context, batch=1)
    assert "\n" not in str(error.value)


def test_no_model_is_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        peak_memory(tmp_path, context=64, batch=1)
    assert "Traceback" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_killed_process_is_reported(
    micro_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nkill -9 $$\n")
    fake.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(fake))
    with pytest.raises(UserError, match=r"killed \(signal 9\)"):
        peak_memory(micro_checkpoint, context=64, batch=1)
