"""What goes into the gate and what comes out: measurements, limits, checks, verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from bench.accuracy import Observation
from bench.fidelity import Fidelity
from bench.latency import Timing
from bench.statistics import Interval

Fields = dict[str, Any]


class Verdict(StrEnum):
    """Worst first: the worst check decides."""

    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"
    UNMEASURED = "UNMEASURED"
    PASS = "PASS"


EXIT = {"PASS": 0, "UNMEASURED": 0, "FAIL": 3, "INCONCLUSIVE": 4}  # exit codes


@dataclass(frozen=True)
class Measurements:
    """Everything known of a candidate beside its baseline. What is absent stays empty."""

    baseline: str  # digests
    candidate: str
    baseline_answers: Sequence[Observation] = ()
    candidate_answers: Sequence[Observation] = ()
    baseline_timings: Sequence[Timing] = ()
    again_timings: Sequence[Timing] = ()  # of the baseline's second arm
    candidate_timings: Sequence[Timing] = ()
    fidelity: Fidelity | None = None
    bytes: int | None = None
    baseline_bytes: int | None = None
    peak_memory_bytes: int | None = None
    baseline_peak_memory_bytes: int | None = None
    memory_at: tuple[int, int] | None = None  # context and batch of the two peaks
    resident_bytes: Sequence[int] = ()  # of the candidate's process after each of equal requests
    # accuracy | fidelity | latency | bytes | peak_memory_bytes -> why not here, such as a missing device
    unmeasured: Mapping[str, str] = field(default_factory=dict)


class Waiver(BaseModel):
    """A check that shall not decide, for a while."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    check: str = Field(min_length=1, description="As the gate names it: `accuracy`, or `accuracy, SLICE`.")
    reason: str = Field(min_length=10, description="Why, for whoever reads the report.")
    expires: date = Field(description="The last day on which it holds.")
    variant: str | None = Field(None, description="The only variant it is for; null is all.")


class Limits(BaseModel):
    """What a candidate must hold. A limit of null is not checked."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="One-sided confidence of every bound.")
    accuracy_margin: float | None = Field(
        1.0, gt=0, lt=100, description="Points of accuracy the candidate may be below the baseline."
    )
    slice_margin: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Points of accuracy that any task, but no part of one, may be below the baseline.",
    )
    slice_margins: dict[str, Annotated[float, Field(gt=0, le=100)]] = Field(
        default_factory=dict,
        description="Slices whose margin is another, and parts of tasks (`task/part`): name and points.",
    )
    min_headroom: float = Field(
        10.0,
        ge=0,
        le=100,
        description="Points above guessing without which a baseline's accuracy shows nothing.",
    )
    ttft_p50_ratio: float | None = Field(
        1.15, gt=0, description="Largest candidate / baseline of the median time to first token."
    )
    ttft_p95_ratio: float | None = Field(
        None,
        gt=0,
        description="Largest candidate / baseline of the 95th percentile of the time to first token.",
    )
    itl_p50_ratio: float | None = Field(
        None, gt=0, description="Largest candidate / baseline of the median time between tokens."
    )
    itl_p95_ratio: float | None = Field(
        None,
        gt=0,
        description="Largest candidate / baseline of the 95th percentile of the time between tokens.",
    )
    e2e_ratio: float | None = Field(
        1.15, gt=0, description="Largest median over requests of candidate / baseline end-to-end latency."
    )
    max_kl: float | None = Field(
        None, gt=0, description="Largest mean KL(baseline || candidate) per token, in nats."
    )
    max_flip_rate: float | None = Field(
        None, gt=0, le=1, description="Largest share of answers that turn from right to wrong or back."
    )
    max_bytes: int | None = Field(6_000_000_000, gt=0, description="Most bytes on disk.")
    max_peak_memory_bytes: int | None = Field(
        6_000_000_000, gt=0, description="Most memory of a process at the stated context and batch, in bytes."
    )
    max_growth_bytes: int | None = Field(
        None, gt=0, description="Most memory that a process may keep of each request, in bytes."
    )
    context: int = Field(
        2048, gt=0, description="Prompt tokens per sequence at which peak memory is measured."
    )
    batch: int = Field(1, gt=0, description="Sequences at once at which peak memory is measured.")
    waivers: tuple[Waiver, ...] = Field(
        (), description="Checks that do not decide until a date: `{check, reason, expires, variant}`."
    )


class Row(BaseModel):
    """One comparison: baseline and candidate in `unit`, delta and its bounds as candidate minus baseline."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    metric: str
    slice: str = Field("all", description="`all`, a task, or the conditions of a measurement.")
    unit: str
    baseline: float | None = None
    candidate: float | None = None
    delta: float | None = None
    ci_low: float | None = Field(None, description="One-sided lower bound.")
    ci_high: float | None = Field(None, description="One-sided upper bound.")
    limit: float | None = None
    relative: bool = Field(
        False, description="delta, ci_low, ci_high and limit are ratios candidate / baseline instead."
    )
    n: int | None = Field(None, description="Items, requests or token positions compared.")
    p_value: float | None = Field(None, description="Exact McNemar test of accuracy, two-sided.")
    reason: str = Field("", description="What follows in words; of a slice, why it was not judged.")

    @property
    def name(self) -> str:
        return self.metric if self.slice == "all" else f"{self.metric}, {self.slice}"


class Check(Row):
    """A comparison with a limit, and what follows."""

    verdict: Verdict
    waived: bool = Field(False, description="Whether a waiver in force keeps it from deciding.")
    needed_n: int | None = Field(None, description="About how many would settle an inconclusive check.")
    noise: float | None = Field(None, description="Of latency: what the baseline is against itself.")
    noise_low: float | None = Field(None, description="One-sided lower bound of it.")
    noise_high: float | None = Field(None, description="One-sided upper bound of it.")


class Gate(BaseModel):
    """All checks of one candidate. `slices` inform; those with a limit are among the checks too."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    baseline: str = Field(description="Digest of the baseline.")
    candidate: str = Field(description="Digest of the candidate.")
    verdict: Verdict
    limits: Limits
    checks: list[Check]
    slices: list[Row]
    observed: list[Row] = Field(
        default_factory=list, description="Figures without a limit: power, temperature, energy, cost."
    )
    waivers: list[dict[str, str]] = Field(
        default_factory=list,
        description="Each {check, reason, expires, status}: in force, expired or unused.",
    )


def missing(m: Measurements, what: str, reason: str) -> Fields:
    """Verdict on evidence that is not there: excused by a reason, else a failure."""
    if what in m.unmeasured:
        return {"verdict": Verdict.UNMEASURED, "reason": m.unmeasured[what]}
    return {"verdict": Verdict.FAIL, "reason": f"missing evidence: {reason}"}


def at_most(row: Fields, found: Interval, needed: int | None = None, beside: str = "") -> Check:
    """PASS if the upper bound is within the limit, FAIL if the lower bound is beyond it.

    beside: what else to say of the figure.
    """
    row = row | {"ci_low": found.low, "ci_high": found.high}
    bounds = f"{found.low:.3g} to {found.high:.3g}, limit {row['limit']:g}{beside}"
    if found.high <= row["limit"]:
        return Check(**row, verdict=Verdict.PASS, reason=bounds)
    if found.low > row["limit"]:
        return Check(**row, verdict=Verdict.FAIL, reason=bounds)
    more = f"; about {needed:,} would settle it" if needed else ""
    return Check(**row, verdict=Verdict.INCONCLUSIVE, reason=bounds + more, needed_n=needed)
