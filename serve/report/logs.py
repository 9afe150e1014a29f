"""Logs of a router, read back into evidence: per-arm figures and the comparison with the baseline."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.errors import UserError
from serve.rollout.evidence import Errors, Mismatch, Ratio
from serve.rollout.guard import EACH
from serve.router.policy import Policy
from serve.router.record import counts_against_arm

MEASURES = {"ttft": "ab.ttft_ms", "itl": "ab.itl_ms", "e2e latency": "ab.e2e_latency_ms"}


@dataclass
class ArmFigures:
    """Of the requests assigned to one arm, whoever answered them. Latencies in ms, of whole answers."""

    requests: int = 0
    failures: int = 0
    fallbacks: int = 0
    users: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    statuses: Counter[int] = field(default_factory=Counter)
    input_tokens: int = 0
    output_tokens: int = 0
    latencies: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in MEASURES})


@dataclass
class Comparison:
    """One arm against the baseline, over the split's requests in order."""

    errors: Errors = field(default_factory=Errors)
    ratios: dict[str, Ratio] = field(default_factory=lambda: {name: Ratio() for name in MEASURES})
    mismatches: dict[str, Mismatch] = field(default_factory=dict)  # by version of the policy, where known


@dataclass
class Report:
    """What the logs of one experiment say."""

    experiment: str
    baseline: str
    arms: dict[str, ArmFigures]
    comparisons: dict[str, Comparison]
    first: str
    last: str


def read_lines(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Lines of log files. Raises UserError on a file that is none; an unfinished last line is skipped."""
    for file in files:
        try:
            with file.open() as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith("\n"):
                        break
                    try:
                        yield _checked(json.loads(line))
                    except (ValueError, KeyError, TypeError):
                        raise UserError(f"{file}:{number} is no line of a router's log") from None
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None


def _checked(line: Any) -> dict[str, Any]:
    line["timestamp"], line["http.response.status_code"]
    if not isinstance(line, dict):
        raise TypeError
    return line


def make_report(
    lines: Iterable[dict[str, Any]],
    baseline: str | None = None,
    experiment: str | None = None,
    policies: Mapping[str, Policy] | None = None,
) -> Report:
    """Figures by arm. Mirrored requests and those refused before an arm was assigned are left out.

    `policies` by version tell the shares that users should arrive in; without them that is not checked.
    `baseline` defaults to the arm with the most requests, `experiment` to the only one. Raises UserError
    where the logs have no such arm, or several experiments.
    """
    kept = [
        line for line in lines if "feature_flag.result.variant" in line and not line.get("ab.mirror", False)
    ]
    experiments = sorted({line["feature_flag.key"] for line in kept})
    if experiment is None and len(experiments) > 1:
        raise UserError(f"the logs have experiments {', '.join(experiments)}; choose one by --experiment")
    kept = [line for line in kept if experiment in (None, line["feature_flag.key"])]
    if not kept:
        raise UserError("the logs have no requests of an arm; expected those of a router with traffic")
    kept.sort(key=lambda line: line["timestamp"])
    counts = Counter(line["feature_flag.result.variant"] for line in kept)
    base = baseline or counts.most_common(1)[0][0]
    if base not in counts:
        raise UserError(f"the logs have no arm {base}; arms are {', '.join(sorted(counts))}")
    report = Report(
        kept[0]["feature_flag.key"],
        base,
        {arm: ArmFigures() for arm in sorted(counts)},
        {arm: Comparison() for arm in sorted(counts) if arm != base},
        kept[0]["timestamp"],
        kept[-1]["timestamp"],
    )
    for line in kept:
        _add(report, line, (policies or {}).get(line["feature_flag.version"]))
    return report


def _add(report: Report, line: dict[str, Any], policy: Policy | None) -> None:
    name, status = line["feature_flag.result.variant"], line["http.response.status_code"]
    error, user = line.get("error.type"), line.get("feature_flag.context.id", "")
    failed = counts_against_arm(status, error, line.get("ab.fallback"))
    arm = report.arms[name]
    arm.requests += 1
    arm.failures += failed
    arm.fallbacks += "ab.fallback" in line
    arm.statuses[status] += 1
    arm.input_tokens += line.get("gen_ai.usage.input_tokens", 0)
    arm.output_tokens += line.get("gen_ai.usage.output_tokens", 0)
    if user:
        arm.users.add(user)
    if line.get("ab.arm") == name and "ab.artifact_digest" in line:
        arm.digests.add(line["ab.artifact_digest"])
    times = {}
    if not failed and error is None and status < 400:
        times = {measure: line[field] for measure, field in MEASURES.items() if field in line}
    for measure, value in times.items():
        arm.latencies[measure].append(value)
    if line.get("feature_flag.result.reason") != "split":
        return
    for candidate, comparison in report.comparisons.items():
        if name in (candidate, report.baseline):
            comparison.errors.add(name == candidate, failed)
            if policy:
                version = line["feature_flag.version"]
                if version not in comparison.mismatches:
                    comparison.mismatches[version] = Mismatch(_share(policy, candidate, report.baseline))
                comparison.mismatches[version].add(name == candidate, user.encode())
            for measure, value in times.items():
                comparison.ratios[measure].add(name == candidate, user.encode(), value / 1000)


def _share(policy: Policy, candidate: str, baseline: str) -> float:
    """The candidate's, of what the two have together."""
    of = [float(policy.split.weights.get(arm, 0)) for arm in (candidate, baseline)]
    return of[0] / sum(of) if sum(of) else 0.0


def verdict(comparison: Comparison) -> str:
    """In words: what may be concluded, however often this was looked at."""
    said = []
    if any(mismatch.shown() for mismatch in comparison.mismatches.values()):
        return "sample-ratio mismatch: users do not arrive as the policy says; trust nothing else here"
    if comparison.errors.worse(EACH):
        said.append("fails more often")
    for measure, ratio in comparison.ratios.items():
        found = ratio.interval(EACH)
        if found and found.low > 1:
            said.append(f"{measure} is longer")
        elif found and found.high < 1:
            said.append(f"{measure} is shorter")
    return "; ".join(said) or "no difference is shown"
