"""What a run shows: nothing lost, nothing unlogged, nothing that grows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from bench.endurance.client import BROKEN, WHOLE, Heard
from bench.endurance.disturb import Change
from bench.endurance.processes import Life
from bench.endurance.run import Run
from bench.growth import MIN_REQUESTS, growth
from bench.statistics import Interval
from bench.verdict import Check, Fields, Verdict, at_most

REQUEST_ID = "http.request.header.x-request-id"
MEMORY_PERCENT = 1.0  # an hour
FILES = 1.0  # an hour
WARM_UP_S = 300.0  # allocators and caches fill; of a short run a third
ENOUGH_S = 600.0  # after it: less cannot tell growth from filling
BLUNT = 25.0  # times the limit, within minutes: nothing that only fills
BLOCKS = 30
NAMED = 3  # examples in a reason


def judge(run: Run) -> list[Check]:
    """Of requests, the log, changes, and each process that lived long enough."""
    return [_lost(run), *_logged(run), _changed(run), *_flat(run)]


def excused(heard: Heard, changes: Sequence[Change]) -> bool:
    """Whether an answer broke off because its arm was killed while it ran."""
    return heard.end == BROKEN and any(
        change.what == f"{heard.arm} killed" and heard.began <= change.began <= heard.ended + 1.0
        for change in changes
    )


def _lost(run: Run) -> Check:
    bad = [heard for heard in run.heard if not heard.good]
    lost = [heard for heard in bad if not excused(heard, run.changes)]
    examples = "; ".join(f"{it.id} ({it.kind}): {it.end}, {it.status} {it.why}" for it in lost[:NAMED])
    killed = f"{len(bad) - len(lost)} streams ended with the arm that was killed"
    return _none("lost_requests", "requests", len(lost), len(run.heard), examples or killed)


def _logged(run: Run) -> Iterator[Check]:
    """Each request that was sent has one line, with the status its client saw; nobody else has one."""
    lines: dict[str, list[int]] = {}
    for line in run.log:
        lines.setdefault(next(iter(line.get(REQUEST_ID, [""]))), []).append(line["http.response.status_code"])
    sent = {heard.id: heard for heard in run.heard}
    missing = [name for name in sent if name not in lines]
    yield _none("log_lines_missing", "lines", len(missing) + run.log_lines_lost, len(sent), _some(missing))
    stray = [name for name, found in lines.items() for _ in found[1 if name in sent else 0 :]]
    yield _none("log_lines_stray", "lines", len(stray), len(run.log), _some(stray))
    other = [
        f"{name}: {sent[name].status} heard, {found[0]} logged"
        for name, found in lines.items()
        if name in sent and sent[name].end == WHOLE and sent[name].status != found[0]
    ]
    yield _none("log_lines_wrong", "lines", len(other), len(run.log), _some(other))


def _changed(run: Run) -> Check:
    bad = [f"{change.what}: {change.why}" for change in run.changes if not change.ok]
    counted = sorted(Counter(change.what for change in run.changes).items())
    done = ", ".join(f"{what} {times}" for what, times in counted)
    return _none("failed_changes", "changes", len(bad), len(run.changes), _some(bad) or done)


def _flat(run: Run) -> Iterator[Check]:
    """Every life that is long enough, else the longest of its name."""
    warm_up = min(WARM_UP_S, run.plan.seconds / 3)
    for name in dict.fromkeys(life.name for life in run.lives):
        lives = [_after(life, warm_up) for life in run.lives if life.name == name]
        longest = max(lives, key=_seconds)
        for life in [life for life in lives if _seconds(life) >= ENOUGH_S] or [longest]:
            yield _memory(life)
            yield _files(life)


def _after(life: Life, warm_up: float) -> Life:
    first = next((n for n, at in enumerate(life.times) if at >= life.times[0] + warm_up), len(life.times))
    return Life(
        life.name, life.pid, life.times[first:], life.resident[first:], life.files[first:], life.cpu_s
    )


def _memory(life: Life) -> Check:
    row: Fields = {"metric": "memory_growth", "unit": "percent an hour", "limit": MEMORY_PERCENT}
    blocks = [float(np.median(block)) for block in _blocks(life.resident)]
    return _growth(row, life, [100 * value / blocks[0] for value in blocks])


def _files(life: Life) -> Check:
    """Open files, each block at its quietest: what is in flight is no growth."""
    row: Fields = {"metric": "open_files_growth", "unit": "files an hour", "limit": FILES}
    return _growth(row, life, [float(min(block)) for block in _blocks(life.files)])


def _growth(row: Fields, life: Life, blocks: Sequence[float]) -> Check:
    """PASS and FAIL where the bound of the slope is within or beyond the limit, after ENOUGH_S; before
    that, FAIL where it has grown by BLUNT limits already.
    """
    row |= {"slice": f"{life.name} {life.pid}", "n": len(blocks)}
    if len(blocks) < MIN_REQUESTS:
        reason = f"seen for {_seconds(life):.0f} s after its warm-up: too short to tell"
        return Check(**row, verdict=Verdict.INCONCLUSIVE, reason=reason)
    hours = _seconds(life) / 3600
    found = growth(blocks)
    each = (len(blocks) - 1) / hours
    found = Interval(found.estimate * each, found.low * each, found.high * each)
    row["candidate"] = found.estimate
    minutes = f"; {60 * hours:.1f} minutes after its warm-up"
    if hours * 3600 >= ENOUGH_S:
        return at_most(row, found, beside=minutes)
    row |= {"ci_low": found.low, "ci_high": found.high}
    if found.low * hours > BLUNT * row["limit"]:
        return Check(**row, verdict=Verdict.FAIL, reason=f"grew too much to be filling up{minutes}")
    return Check(**row, verdict=Verdict.INCONCLUSIVE, reason=f"too short to tell{minutes}")


def _blocks(values: Sequence[int]) -> list[list[int]]:
    parts = np.array_split(np.array(values), min(BLOCKS, max(1, len(values) // 3)))
    return [part.tolist() for part in parts]


def _seconds(life: Life) -> float:
    return life.times[-1] - life.times[0] if life.times else 0.0


def _none(metric: str, unit: str, found: int, n: int, reason: str) -> Check:
    """PASS where there is none."""
    verdict = Verdict.FAIL if found else Verdict.PASS
    return Check(metric=metric, unit=unit, candidate=found, limit=0, n=n, verdict=verdict, reason=reason)


def _some(found: Sequence[str]) -> str:
    return ", ".join(found[:NAMED]) + (f" and {len(found) - NAMED} more" if len(found) > NAMED else "")
