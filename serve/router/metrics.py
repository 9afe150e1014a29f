"""Metrics by arm, as Prometheus reads them; buckets are those OpenTelemetry advises for gen_ai.server.*."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence

from serve.router.arm import Arm
from serve.router.record import Record, counts_against_arm

TTFT = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
ITL = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
E2E = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
STATES = {"closed": 0, "half-open": 1, "open": 2}


class Histogram:
    """Counts of values by bucket."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


class ArmMetrics:
    """Of the requests assigned to one arm, whoever answered them."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()  # by status
        self.errors: Counter[str] = Counter()  # by type
        self.fallbacks: Counter[str] = Counter()  # by why the arm did not answer
        self.failures = 0  # what counts against the arm
        self.tokens: Counter[str] = Counter()
        self.ttft = Histogram(TTFT)
        self.itl = Histogram(ITL)
        self.e2e = Histogram(E2E)


class Metrics:
    """Mirrored requests are kept apart: no client waited for them."""

    def __init__(self) -> None:
        self._arms: dict[tuple[str, bool], ArmMetrics] = {}

    def observe(self, record: Record) -> None:
        """A request has ended."""
        place = (record.assigned or "", record.mirror)
        arm = self._of(place)
        arm.requests[record.status] += 1
        if record.error:
            arm.errors[record.error] += 1
        if record.fallback:
            arm.fallbacks[record.fallback] += 1
        if counts_against_arm(record.status, record.error, record.fallback):
            arm.failures += 1
        if record.output_tokens is not None:
            arm.tokens["output"] += record.output_tokens
            arm.tokens["input"] += record.input_tokens or 0
        if record.status < 400 and not record.error:
            arm.e2e.observe(record.e2e)
            if (ttft := record.ttft) is not None:
                arm.ttft.observe(ttft)
            if (itl := record.itl) is not None:
                arm.itl.observe(itl)

    def turned_away(self) -> None:
        """A connection beyond the limit was closed, before it said whose it is."""
        self._of(("", False)).errors["too_many_connections"] += 1

    def _of(self, place: tuple[str, bool]) -> ArmMetrics:
        return self._arms.get(place) or self._arms.setdefault(place, ArmMetrics())

    def totals(self, arm: str) -> dict[str, int]:
        """Requests assigned to an arm since the start, those of them it failed, and their tokens."""
        found = self._arms.get((arm, False)) or ArmMetrics()
        tokens = {"input_tokens": found.tokens["input"], "output_tokens": found.tokens["output"]}
        return {"requests": found.requests.total(), "failed": found.failures, **tokens}

    def text(self, arms: dict[str, Arm], version: int, dropped: int) -> str:
        """Everything in Prometheus' text format 0.0.4."""
        return "".join(self._lines(arms, version, dropped))

    def _lines(self, arms: dict[str, Arm], version: int, dropped: int) -> Iterator[str]:
        for name, attribute, label, told in (
            ("router_requests_total", "requests", "status", "Requests by assigned arm and status."),
            ("router_errors_total", "errors", "type", "Requests that did not end well, by error.type."),
            ("router_fallbacks_total", "fallbacks", "reason", "Requests another arm had to answer."),
            ("router_tokens_total", "tokens", "kind", "Tokens told by the arms' usage."),
        ):
            yield f"# HELP {name} {told}\n# TYPE {name} counter\n"
            for (assigned, mirror), metrics in self._arms.items():
                for kind, count in getattr(metrics, attribute).items():
                    yield f'{name}{{{_labels(assigned, mirror)},{label}="{kind}"}} {count}\n'
        yield "# HELP router_failures_total Requests that count against the arm.\n"
        yield "# TYPE router_failures_total counter\n"
        for (assigned, mirror), metrics in self._arms.items():
            yield f"router_failures_total{{{_labels(assigned, mirror)}}} {metrics.failures}\n"
        for name, attribute, told in (
            ("gen_ai_server_time_to_first_token_seconds", "ttft", "To the first piece of an answer."),
            ("gen_ai_server_time_per_output_token_seconds", "itl", "Between two tokens."),
            ("gen_ai_server_request_duration_seconds", "e2e", "To the end of an answer."),
        ):
            yield f"# HELP {name} {told}\n# TYPE {name} histogram\n"
            for (assigned, mirror), metrics in self._arms.items():
                yield from _histogram(name, _labels(assigned, mirror), getattr(metrics, attribute))
        for name, told, values in (
            ("router_arm_in_flight", "Requests now at an arm.", {a.name: a.in_flight for a in arms.values()}),
            ("router_arm_healthy", "Last health check.", {a.name: int(a.healthy) for a in arms.values()}),
            (
                "router_breaker_state",
                "0 closed, 1 half-open, 2 open.",
                {a.name: STATES[a.breaker.state] for a in arms.values()},
            ),
        ):
            yield f"# HELP {name} {told}\n# TYPE {name} gauge\n"
            for arm, value in values.items():
                yield f'{name}{{arm="{arm}"}} {value}\n'
        yield "# HELP router_policy_version Version in force.\n# TYPE router_policy_version gauge\n"
        yield f"router_policy_version {version}\n"
        yield "# HELP router_log_dropped_total Log lines lost.\n# TYPE router_log_dropped_total counter\n"
        yield f"router_log_dropped_total {dropped}\n"


def _labels(arm: str, mirror: bool) -> str:
    return f'arm="{arm}",mirror="{str(mirror).lower()}"'


def _histogram(name: str, labels: str, histogram: Histogram) -> Iterator[str]:
    total = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        total += count
        yield f'{name}_bucket{{{labels},le="{bound}"}} {total}\n'
    yield f"{name}_sum{{{labels}}} {histogram.sum:.6f}\n{name}_count{{{labels}}} {total}\n"
