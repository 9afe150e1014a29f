"""A verdict in plain English, from the figures it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.verdict import Check, Gate, Verdict
from engines.units import human_size

NAMES = {"e2e_latency_ms": "end-to-end latency", "bytes": "size on disk", "peak_memory_bytes": "peak memory"}


def sentence(name: str, judged: Gate) -> str:
    """What the gate says of a variant, in one or two sentences that stand on their own."""
    if judged.baseline == judged.candidate:
        return f"{name} is the baseline that the others are held against."
    deciding = [check for check in judged.checks if not check.waived]
    against = [check for check in deciding if check.verdict == judged.verdict]
    waived = sum(check.waived for check in judged.checks)
    note = f" {_count(waived, 'check')} waived." if waived else ""
    match judged.verdict:
        case Verdict.PASS:
            return f"{name} may replace the baseline: {_figures(deciding)}.{note}"
        case Verdict.FAIL:
            return f"{name} must not replace the baseline: {_reasons(against)}.{note}"
        case Verdict.INCONCLUSIVE:
            return f"Whether {name} may replace the baseline is not known yet: {_reasons(against)}.{note}"
    return f"{name} is not measured here: {against[0].reason if against else 'its device is elsewhere'}."


def whole(gates: Mapping[str, Gate]) -> str:
    """What a build comes to: how many variants pass, which do not, and the fastest that does."""
    others = {name: x for name, x in gates.items() if x.baseline != x.candidate}
    named = {v: [name for name, x in others.items() if x.verdict == v] for v in Verdict}
    judged = len(others) - len(named[Verdict.UNMEASURED])
    if not judged:
        return "No variant but the baseline could be measured here."
    passed = named[Verdict.PASS]
    told = f"{len(passed)} of {_count(judged, 'variant')} measured here may replace the baseline."
    if named[Verdict.FAIL]:
        told += f" Shown not to be good enough: {', '.join(named[Verdict.FAIL])}."
    if named[Verdict.INCONCLUSIVE]:
        told += f" Not known yet: {', '.join(named[Verdict.INCONCLUSIVE])}."
    times = {name: x.delta for name in passed for x in others[name].checks if x.name == "e2e_latency_ms"}
    timed = {name: x for name, x in times.items() if x is not None}
    if timed:
        fastest = min(timed, key=timed.__getitem__)
        told += f" The fastest of them is {fastest}: {_figures(others[fastest].checks)}."
    return told


def title(check: Check) -> str:
    """As a reader calls it."""
    name = NAMES.get(check.metric, check.metric.replace("_ms", "").replace("_", " "))
    where = "on" if check.metric == "accuracy" else "at"
    return name if check.slice == "all" else f"{name} {where} {check.slice}"


def _figures(checks: Sequence[Check]) -> str:
    """Accuracy, end-to-end latency, size and memory, of those that were asked for; then the slices."""
    told = [_figure(check) for check in checks if check.slice == "all" or check.unit == "bytes"]
    slices = [check for check in checks if check.slice != "all" and check.metric == "accuracy"]
    if slices:
        worst = min(slices, key=lambda check: check.delta or 0.0)
        told.append(
            f"none of {_count(len(slices), 'slice')} loses more than {-(worst.delta or 0.0):.1f} points"
        )
    return ", ".join(x for x in told if x)


def _figure(check: Check) -> str:
    if check.unit == "bytes" and check.candidate is not None:
        return (
            f"{human_size(check.candidate)} {'on disk' if check.metric == 'bytes' else 'of memory at most'}"
        )
    if check.delta is None or check.ci_low is None or check.ci_high is None or check.limit is None:
        return ""
    if check.metric == "accuracy":
        if check.delta < 0:
            worst = f"{-check.ci_low:.1f} at worst" if check.ci_low < 0 else "none at worst"
            return f"it loses {-check.delta:.1f} points of accuracy ({worst}, {-check.limit:g} allowed)"
        return f"it loses no accuracy ({max(-check.ci_low, 0):.1f} points at worst, {-check.limit:g} allowed)"
    if check.metric == "e2e_latency_ms":
        worst = f"{check.ci_high:.2f} at worst, {check.limit:g} allowed"
        return f"takes {check.delta:.2f} of the baseline's time ({worst})"
    return ""


def _reasons(checks: Sequence[Check]) -> str:
    told = "; ".join(f"{title(check)}: {check.reason}" for check in checks[:2])
    more = len(checks) - 2
    return f"{told}; and {_count(more, 'more check')}" if more > 0 else told


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"
