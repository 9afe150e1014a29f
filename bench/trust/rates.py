"""How often a verdict is wrong, with the exact interval of that rate beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from bench.statistics import Interval, exact_interval
from bench.verdict import Verdict

PROMISE = 0.05


@dataclass(frozen=True)
class Rate:
    """Verdicts on one truth, drawn again and again.

    truth: what the candidate really is; wrong: the verdict that would be an error; promise: the most often
    that it may happen, None where it is told and not held.
    """

    name: str
    truth: str
    wrong: Verdict
    verdicts: dict[Verdict, int]
    promise: float | None = PROMISE

    @property
    def draws(self) -> int:
        return sum(self.verdicts.values())

    @property
    def found(self) -> Interval:
        """The rate of errors and its 95 % Clopper-Pearson interval."""
        return exact_interval(self.verdicts[self.wrong], self.draws)

    @property
    def held(self) -> bool:
        """Shown to be within the promise: by the interval's upper end, so that few draws show nothing."""
        return self.promise is None or self.found.high <= self.promise

    def document(self) -> dict[str, object]:
        """For JSON."""
        found = self.found
        return {
            "name": self.name,
            "truth": self.truth,
            "error": f"false {self.wrong}",
            "draws": self.draws,
            "verdicts": {str(verdict): count for verdict, count in self.verdicts.items()},
            "rate": found.estimate,
            "low": found.low,
            "high": found.high,
            "promise": self.promise,
            "held": self.held,
        }


def tally(verdicts: Iterable[Verdict]) -> dict[Verdict, int]:
    """How often each verdict was given."""
    found = Counter(verdicts)
    return {verdict: found[verdict] for verdict in Verdict}


def draws_needed(promise: float = PROMISE) -> int:
    """The fewest draws that can show a promise to be held, with no error among them."""
    n = 1
    while exact_interval(0, n).high > promise:
        n += 1
    return n
