"""`bench load` and `bench open-loop`: what servers of OpenAI's API do under load."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.table import Table

from bench.breakdown import figure
from bench.client import Load
from bench.latency import AGAIN
from bench.load import run
from bench.noise import told
from bench.open_loop import FIGURES, Outcome, Plan, by_size, checks, compare, figures, ratio
from bench.statistics import Interval
from bench.tables import show, tell
from bench.verdict import EXIT, Verdict
from engines.errors import UserError
from engines.units import human_size


def load(options: Namespace) -> int:
    """Several numbers of clients in turn; exit code 1 when any request failed."""
    asked = replace(
        _load(options.url, options),
        image_size=options.image_size,
        seconds=options.seconds,
        seed=options.seed,
    )
    columns = "clients requests errors turned_away tokens/s × ttft_p50_ms ttft_p95_ms gap_p99_ms gap_max_ms"
    columns += " gap_p99_beside_pictures_ms memory"
    shown = Table(*(name.replace("_", " ") for name in columns.split()), box=None, header_style="bold")
    found: list[dict[str, Any]] = []
    for clients in options.clients:
        tell(f"{clients} at once for {options.seconds} s")
        tally = run(asked, clients)
        found.append({"clients": clients, **tally.summary()})
        ratio = tally.tokens_per_s / (found[0]["output_tokens_per_s"] or 1)
        failed, memory = sum(tally.errors.values()), tally.memory[-1] if tally.memory else None
        shares = [("ttft_ms", "p50"), ("ttft_ms", "p95"), ("gap_ms", "p99"), ("gap_ms", "max")]
        shares.append(("gap_beside_pictures_ms", "p99"))
        figures = [tally.tokens_per_s, ratio, *(found[-1][name].get(share, 0) for name, share in shares)]
        counts = map(str, (clients, tally.requests, failed, tally.turned_away))
        shown.add_row(*counts, *(f"{value:,.3g}" for value in figures), human_size(memory) if memory else "-")
        for reason, count in tally.errors.items():
            tell(f"{clients} clients, {count} times: {reason}")
    show(shown, {"url": asked.url, "rounds": found}, options)
    return int(any(entry["errors"] for entry in found))


def open_loop(options: Namespace) -> int:
    """The same Poisson arrivals at every server, at several rates; exit code 1 when a request failed, else
    that of the verdict on the servers after the first."""
    loads = [_load(url, options) for url in options.urls]
    urls = [load.url for load in loads]
    if len(set(urls)) < len(urls):
        raise UserError("a server is named twice: expected different ones; the first is asked twice anyway")
    sizes = tuple(options.rates), tuple(options.image_size)
    plan = Plan(*sizes, options.requests, options.rounds, options.seed)
    outcome = compare(urls, loads[0], plan, tell)
    heads = ("rate", "per s", "server", "answered", *(f"{name} p50 / p95 / p99" for name in FIGURES))
    beside = ("e2e ratio", "first against itself", "", "sent late p99")
    shown = Table(*heads, *beside, box=None, header_style="bold")
    rows = list(_rows(outcome, urls, options.latency_ratio))
    for row in rows:
        where = f"{row['url']} at {row['rate']:g}" if row["rate"] else row["url"]
        failed = sum(row["problems"].values())
        shown.add_row(
            f"{row['rate']:g}" if row["rate"] else "one by one",
            f"{row['per_s']:.3g}" if row["rate"] else "",
            row["url"],
            f"{row['requests'] - failed} of {row['requests']}",
            *(figure(row[name]) for name in FIGURES),
            *(told(Interval(**row[name])) if row[name] else "-" for name in ("e2e_ratio", "noise")),
            row["verdict"] or "",
            f"{row['late_p99_ms']:.3g}",
        )
        for name, part in row["slices"].items():
            shown.add_row("", "", f"  {name}", str(part["requests"]), *(figure(part[x]) for x in FIGURES))
        for problem, times in row["problems"].items():
            tell(f"{where}, {times} times: {problem}")
        for check in row["checks"]:
            tell(f"{where}: {check['metric']} {check['verdict']}, {check['reason']}")
    verdict = _worst([row["verdict"] for row in rows if row["verdict"]])
    facts = {"capacity_per_s": outcome.capacity, "seed": plan.seed, "verdict": verdict, "rows": rows}
    show(shown, facts, options)
    if any(row["problems"].keys() - {"turned away"} for row in rows):
        return 1
    return EXIT[verdict] if verdict else 0


def _rows(outcome: Outcome, urls: Sequence[str], limit: float) -> Iterator[dict[str, Any]]:
    """One for each rate and server; those after the first are held against it."""
    for rate in dict.fromkeys(rate for rate, _ in outcome.asked):
        first, again = outcome.asked[rate, urls[0]], outcome.asked[rate, urls[0] + AGAIN]
        noise = ratio(first, again, "e2e_latency_ms")
        for url in urls:
            rounds = outcome.asked[rate, url]
            asked = [one for part in rounds for one in part]
            e2e = ratio(first, rounds, "e2e_latency_ms")
            made = [] if url == urls[0] else list(checks(first, again, rounds, rate, limit))
            yield {
                "rate": rate,
                "per_s": rate * outcome.capacity,
                "url": url,
                **figures(asked),
                "e2e_ratio": asdict(e2e) if e2e else None,
                "noise": asdict(noise) if noise else None,
                "verdict": _worst([check.verdict for check in made]),
                "checks": [check.model_dump(mode="json") for check in made],
                "slices": {name: figures(part) for name, part in by_size(asked).items()},
            }


def _worst(verdicts: Sequence[Verdict]) -> Verdict | None:
    return next((verdict for verdict in Verdict if verdict in verdicts), None)


def _load(url: str, options: Namespace) -> Load:
    """What a server is asked; its address may be given as clients of OpenAI's write it, with /v1."""
    return Load(
        url=url.rstrip("/").removesuffix("/v1"),
        output_tokens=options.output_tokens,
        images=options.images / 100,
        key=options.api_key_file.read_text().strip() if options.api_key_file else None,
    )
