"""A router's log as evidence: per-arm figures and the comparison with the baseline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from engines.errors import UserError
from serve.report.lines import Line, Logs
from serve.rollout.evidence import Errors, Mismatch, Ratio
from serve.rollout.guard import EACH, level
from serve.router.policy import Policy
from serve.router.record import counts_against_arm

MEASURES = ("ttft", "itl", "e2e")  # fields of a line
NAMES = {"ttft": "ttft", "itl": "itl", "e2e": "e2e latency"}


@dataclass
class ArmFigures:
    """Of the requests assigned to one arm, whoever answered them. Latencies in ms, of whole answers."""

    requests: int = 0
    failures: int = 0
    fallbacks: int = 0
    users: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    latencies: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})


@dataclass
class Step:
    """One arm against the baseline while their shares stayed the same."""

    share: float | None  # the arm's of what the two have together, where the policy is known
    versions: list[str] = field(default_factory=list)
    requests: Counter[bool] = field(default_factory=Counter)
    ratios: dict[str, Ratio] = field(default_factory=lambda: {name: Ratio() for name in MEASURES})
    mismatch: Mismatch | None = None


@dataclass
class Comparison:
    """One arm against the baseline, over the split's requests: failures together, latencies step by step,
    as in a rollout (see serve.rollout.guard)."""

    errors: Errors = field(default_factory=Errors)
    steps: list[Step] = field(default_factory=list)


@dataclass
class Report:
    """What the logs of one experiment say."""

    experiment: str
    baseline: str
    arms: dict[str, ArmFigures]
    comparisons: dict[str, Comparison]
    first: str
    last: str
    unassigned: int  # requests refused before they had an arm
    mirrored: int
    left_out: int  # lines that are none of a router's log
    named: list[str]


def make_report(
    logs: Logs,
    baseline: str | None = None,
    experiment: str | None = None,
    policies: Mapping[str, Policy] | None = None,
) -> Report:
    """Figures by arm. Mirrored requests and those refused before an arm was assigned are only counted.

    `policies` by version tell the shares that users should arrive in; without them that is not checked.
    `baseline` defaults to the arm with the most requests, `experiment` to the only one. Raises UserError
    where the logs have no such arm, or several experiments.
    """
    experiments = sorted({line.experiment for line in logs.lines})
    if experiment is None and len(experiments) > 1:
        raise UserError(f"the logs have experiments {', '.join(experiments)}; choose one by --experiment")
    ours = [line for line in logs.lines if experiment in (None, line.experiment)]
    kept = sorted(
        (line for line in ours if line.assigned and not line.mirror), key=lambda line: line.timestamp
    )
    if not kept:
        why = f"; {logs.left_out} lines were left out, the first {logs.named[0]}" if logs.named else ""
        raise UserError(f"the logs have no requests of an arm; expected those of a router with traffic{why}")
    counts = Counter(line.assigned or "" for line in kept)
    base = baseline or counts.most_common(1)[0][0]
    if base not in counts:
        raise UserError(f"the logs have no arm {base}; arms are {', '.join(sorted(counts))}")
    arms = {name: ArmFigures() for name in sorted(counts)}
    for line in kept:
        _add(arms[line.assigned or ""], line)
    return Report(
        kept[0].experiment,
        base,
        arms,
        {arm: _compare(kept, arm, base, policies or {}) for arm in arms if arm != base},
        kept[0].timestamp,
        kept[-1].timestamp,
        sum(not line.assigned for line in ours),
        sum(line.mirror for line in ours),
        logs.left_out,
        logs.named,
    )


def _add(arm: ArmFigures, line: Line) -> None:
    arm.requests += 1
    arm.failures += _failed(line)
    arm.fallbacks += line.fallback is not None
    arm.statuses[line.status] += 1
    if line.error:
        arm.errors[line.error] += 1
    arm.input_tokens += line.input_tokens
    arm.output_tokens += line.output_tokens
    if line.user:
        arm.users.add(line.user)
    if line.arm == line.assigned and line.digest:
        arm.digests.add(line.digest)
    for measure, value in _times(line).items():
        arm.latencies[measure].append(value)


def _failed(line: Line) -> bool:
    return counts_against_arm(line.status, line.error, line.fallback)


def _times(line: Line) -> dict[str, float]:
    """Latencies of a whole answer; nothing of any other."""
    if _failed(line) or line.error is not None or line.status >= 400:
        return {}
    return {measure: value for measure in MEASURES if (value := getattr(line, measure)) is not None}


def _compare(
    lines: Iterable[Line], candidate: str, baseline: str, policies: Mapping[str, Policy]
) -> Comparison:
    groups: dict[float | str, list[Line]] = {}  # by share; by version where its policy is not known
    for line in lines:
        if line.reason == "split" and line.assigned in (candidate, baseline):
            policy = policies.get(line.version)
            group = line.version if policy is None else _share(policy, candidate, baseline)
            groups.setdefault(group, []).append(line)
    comparison = Comparison()
    for group, members in groups.items():
        share = group if isinstance(group, float) else None
        step = Step(share, mismatch=None if share is None else Mismatch(share))
        if comparison.steps:
            comparison.errors.step()
        comparison.steps.append(step)
        for line in members:
            _weigh(comparison.errors, step, line, line.assigned == candidate)
    return comparison


def _weigh(errors: Errors, step: Step, line: Line, candidate: bool) -> None:
    if line.version not in step.versions:
        step.versions.append(line.version)
    step.requests[candidate] += 1
    errors.add(candidate, _failed(line))
    if step.mismatch:
        step.mismatch.add(candidate, line.user.encode())
    for measure, value in _times(line).items():
        step.ratios[measure].add(candidate, line.user.encode(), value / 1000)


def _share(policy: Policy, candidate: str, baseline: str) -> float:
    """The candidate's, of what the two have together."""
    of = [float(policy.split.weights.get(arm, 0)) for arm in (candidate, baseline)]
    return of[0] / sum(of) if sum(of) else 0.0


def verdict(comparison: Comparison) -> str:
    """In words: what may be concluded, however often this was looked at."""
    said = []
    if any(step.mismatch and step.mismatch.shown() for step in comparison.steps):
        return "sample-ratio mismatch: users do not arrive as the policy says; trust nothing else here"
    if comparison.errors.worse(EACH):
        said.append("fails more often")
    elif comparison.errors.interval(EACH).high < 0:
        said.append("fails less often")
    for measure, name in NAMES.items():
        shown = set()
        for number, step in enumerate(comparison.steps, 1):
            found = step.ratios[measure].interval(level(number))
            if found and found.low > 1:
                shown.add("longer")
            elif found and found.high < 1:
                shown.add("shorter")
        if shown:
            said.append(f"{name} is {' and, at another share, '.join(sorted(shown))}")
    return "; ".join(said) or "no difference is shown"
