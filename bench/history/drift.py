"""Is the newest build worse than what was published before it? An interval for every figure, not a point.

Accuracy is compared item by item (Tango's interval, as the gate has it). Latency and memory vary from run to
run by more than one run can tell, so their noise is learned from runs of equal artifacts on equal hardware: a
new run lies within t * s * sqrt(1 + 1 / n) of the mean of n earlier ones (a prediction interval), s being the
standard deviation of such repetitions on a log scale. Sizes are exact. All claims of one night share one
error: Holm's correction over every variant and figure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from bench.history.runs import Run
from bench.statistics import below_p, holm, tango_interval

LEAST = 2  # degrees of freedom below which repetitions say nothing of the noise
DRIFT, STEADY, UNKNOWN = "DRIFT", "steady", "unknown"


@dataclass(frozen=True)
class Change:
    """One figure of one variant, now and as published. Accuracy changes by points, all else by percent;
    `p` is the one-sided chance of so much worse if nothing had changed beyond what is tolerated."""

    variant: str
    metric: str
    before: float | None = None
    now: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: str = UNKNOWN
    reason: str = ""

    @property
    def unit(self) -> str:
        return "points" if self.metric.startswith("accuracy") else "%"


def changes(
    runs: Sequence[Run], *, confidence: float = 0.99, tolerance: float = 2.0, against: str | None = None
) -> list[Change]:
    """What has changed in the newest build of `runs`, oldest first.

    Each variant is held against its last published run before, on the same hardware, or against its run of
    the commit `against`. `tolerance`: percent by which a ratio, memory or a size may grow.
    """
    newest = [run for run in runs if (run.model, run.time) == (runs[-1].model, runs[-1].time)]
    found: list[Change] = []
    for run in newest:
        earlier = [
            x
            for x in runs
            if (x.model, x.variant, x.machine) == (run.model, run.variant, run.machine) and x.time < run.time
        ]
        if against:
            wanted = [x for x in earlier if (x.commit or "").startswith(against)]
        else:
            wanted = [x for x in earlier if x.published]
        if not wanted:
            what = f"no run of commit {against}" if against else "nothing published before"
            found.append(Change(run.variant, "all", reason=f"{what} on {run.machine[0]}"))
            continue
        reference = wanted[-1]
        cause = _cause(reference, run)
        made = [
            *_accuracy(run, reference, confidence),
            *_costs(run, reference, earlier, confidence, tolerance),
        ]
        found += [replace(change, reason=change.reason or cause) for change in made]
    told = [i for i, change in enumerate(found) if change.p is not None]
    worse = holm([found[i].p or 0.0 for i in told], 1 - confidence)
    for i, shown in zip(told, worse, strict=True):
        found[i] = replace(found[i], verdict=DRIFT if shown else STEADY)
    return found


def _accuracy(run: Run, reference: Run, confidence: float) -> Iterator[Change]:
    """Over all items, then slice by slice."""
    if not run.scores or not reference.scores:
        return
    if run.items != reference.items:
        yield Change(run.variant, "accuracy", reason="other items than those of the published run")
        return
    pairs = {
        task: list(zip(reference.scores[task], scores, strict=True)) for task, scores in run.scores.items()
    }
    everything = [pair for rows in pairs.values() for pair in rows]
    slices = {f"accuracy, {task}": rows for task, rows in pairs.items()} if len(pairs) > 1 else {}
    for name, rows in {"accuracy": everything, **slices}.items():
        n = len(rows)
        won = math.fsum(max(0.0, after - before) for before, after in rows)
        lost = math.fsum(max(0.0, before - after) for before, after in rows)
        interval = tango_interval(won, lost, n, 2 * confidence - 1)
        yield Change(
            run.variant,
            name,
            before=100 * math.fsum(before for before, _ in rows) / n,
            now=100 * math.fsum(after for _, after in rows) / n,
            difference=100 * interval.estimate,
            low=100 * interval.low,
            high=100 * interval.high,
            p=below_p(won, lost),
        )


def _costs(
    run: Run, reference: Run, earlier: Sequence[Run], confidence: float, tolerance: float
) -> Iterator[Change]:
    before, now, slack = reference.bytes, run.bytes, math.log1p(tolerance / 100)
    grown = 100 * (now / before - 1)
    p = 0.0 if math.log(now / before) > slack else 1.0
    yield Change(run.variant, "bytes", before, now, grown, grown, grown, p)
    shared = [name for name in (*run.figures, "peak_memory_bytes") if name != "accuracy"]
    for metric in shared:
        if _value(run, metric) and _value(reference, metric):
            yield _noisy(metric, run, reference, earlier, confidence, slack)


def _noisy(
    metric: str, run: Run, reference: Run, earlier: Sequence[Run], confidence: float, slack: float
) -> Change:
    """A new value against the mean of the earlier ones of the reference's artifact on the same packages."""
    from scipy.stats import t

    groups = defaultdict(list)
    for one in earlier:
        if (value := _value(one, metric)) is not None:
            groups[_setting(one)].append(math.log(value))
    group = groups[_setting(reference)]
    centre, now = math.fsum(group) / len(group), _value(run, metric) or 0.0
    change = Change(run.variant, metric, before=math.exp(centre), now=now)
    freedom = sum(len(values) - 1 for values in groups.values())
    if freedom < LEAST:
        more = LEAST - freedom
        reason = f"{more} more run{'s' if more > 1 else ''} of an unchanged artifact would tell its noise"
        return replace(change, reason=reason)
    spread = math.fsum((x - math.fsum(v) / len(v)) ** 2 for v in groups.values() for x in v) / freedom
    error = max(math.sqrt(spread * (1 + 1 / len(group))), 1e-6)  # memory may repeat to the byte
    away = math.log(now) - centre
    reach = error * float(t.ppf(confidence, freedom))
    percent = [100 * math.expm1(x) for x in (away, away - reach, away + reach)]
    p = float(t.sf((away - slack) / error, freedom))
    return replace(change, difference=percent[0], low=percent[1], high=percent[2], p=p)


def _setting(run: Run) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Runs that share it repeat each other."""
    return run.digest, tuple(sorted(run.versions.items()))


def _value(run: Run, metric: str) -> float | None:
    if metric == "peak_memory_bytes":
        return run.peak_memory_bytes
    return run.figures[metric][0] if metric in run.figures else None


def _cause(before: Run, now: Run) -> str:
    """What is not the same, for whoever looks for the reason."""
    found = [] if before.commit == now.commit else [f"commit {_short(before)} → {_short(now)}"]
    versions = {name: (before.versions.get(name), version) for name, version in now.versions.items()}
    found += [f"{name} {old} → {new}" for name, (old, new) in versions.items() if old != new]
    found += ["the artifact is the same"] if before.digest == now.digest else []
    return ", ".join(found)


def _short(run: Run) -> str:
    return (run.commit or "unknown")[:9] + ("+" if run.dirty else "")
