"""The recipe of the micro checkpoint: reproducible, resumable, and its optimiser is the published one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from engines.checkpoint import Checkpoint
from engines.errors import UserError

torch = pytest.importorskip("torch")

STEPS = 5


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Training sets the threads of the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny batches, a state saved every other step, no compiler, no accuracy report."""
    from bench.micro import train

    monkeypatch.setattr(train, "Recipe", partial(train.Recipe, batch_size=2, save_every=2))
    monkeypatch.setattr(train, "_compiled", lambda: None)
    monkeypatch.setattr(train, "_accuracy", lambda *_: {})


@pytest.mark.usefixtures("small")
def test_interrupted_run_ends_as_an_undisturbed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.micro import train

    train.train(tmp_path / "whole", steps=STEPS, threads=1)
    batch = train.training_batch

    def fails(seed: int, step: int, *rest: object):
        if step == 3:
            raise KeyboardInterrupt
        return batch(seed, step, *rest)

    monkeypatch.setattr(train, "training_batch", fails)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "parts", steps=STEPS, threads=1)
    monkeypatch.setattr(train, "training_batch", batch)
    with pytest.raises(UserError, match="another recipe"):
        train.train(tmp_path / "parts", steps=STEPS + 1, threads=1)
    train.train(tmp_path / "parts", steps=STEPS, threads=1)
    whole, parts = Checkpoint.open(tmp_path / "whole"), Checkpoint.open(tmp_path / "parts")
    for name in whole.names():
        np.testing.assert_array_equal(whole.tensor(name), parts.tensor(name))
    assert not (tmp_path / "parts" / "training.pt").exists()
    with pytest.raises(UserError, match="exists already"):
        train.train(tmp_path / "parts", steps=STEPS, threads=1)


@pytest.mark.parametrize("shape", [(128, 256), (256, 128), (128, 128)])
def test_muon_is_torchs(shape: tuple[int, int]) -> None:
    """Three steps of both; torch's works in bfloat16, hence the tolerance."""
    from bench.micro.muon import Muon

    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(shape))
    theirs = torch.nn.Parameter(ours.detach().clone())
    start = ours.detach().clone()
    optimizers = [
        Muon([ours], lr=0.01),
        torch.optim.Muon([theirs], lr=0.01, momentum=0.95, weight_decay=0.05, ns_steps=4),
    ]
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.linalg.norm(ours - theirs) < 0.02 * torch.linalg.norm(theirs - start)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    from bench.micro.train import train

    with pytest.raises(UserError, match="at least 1"):
        train(tmp_path / "new", steps=0)
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        train(tmp_path, steps=1)
