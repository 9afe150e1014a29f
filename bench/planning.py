"""How many items a margin takes, from the exact chance that the gate's test passes."""

from __future__ import annotations

import numpy as np

from bench.statistics import items_needed, tango_excess


def pass_chance(n: int, discordance: float, margin: float, alpha: float = 0.05, delta: float = 0.0) -> float:
    """Chance that the one-sided bound of `n` items is above -margin, if the true difference is `delta`.

    Sums the trinomial of items won and lost; `discordance` is the share of either. Fractions, not points.
    """
    from scipy.stats import binom, norm

    win, lose = (discordance + delta) / 2, (discordance - delta) / 2
    won = np.arange(int(binom.ppf(1e-9, n, win)), int(binom.isf(1e-9, n, win)) + 1)[:, None]
    lost = np.arange(int(binom.ppf(1e-9, n, lose)), int(binom.isf(1e-9, n, lose)) + 1)[None, :]
    chance = binom.pmf(won, n, win) * binom.pmf(lost, n - won, min(1.0, lose / (1 - win)) if win < 1 else 0.0)
    passes = tango_excess(won, lost, n, -margin, float(norm.ppf(1 - alpha))) > 0
    return float((chance * passes).sum())


def items_planned(
    slices: int,
    discordance: float,
    margin: float,
    power: float = 0.8,
    alpha: float = 0.05,
    delta: float = 0.0,
) -> int:
    """Items that each of so many equal slices needs for all of them to pass with probability `power`.

    Slices share no item, so their chances multiply and each needs the root of it. A wrong PASS of the whole
    does not grow likelier with their number: that takes a pass of the bad one. Begins below the normal
    approximation, which is some percent off where few items differ.
    """
    each = power ** (1 / slices)
    n = max(1, items_needed(discordance, margin, each, alpha, delta) * 3 // 4)
    while pass_chance(n, discordance, margin, alpha, delta) < each:
        n += max(1, n // 200)
    return n
