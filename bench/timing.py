"""`bench latency`, `bench load` and `bench open-loop`: speed, one request at a time and under load."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.arms import here
from bench.breakdown import PHASES, breakdown, figure
from bench.client import Load
from bench.latency import AGAIN, METRICS, Timing, measure, of_arm, summarize, table
from bench.noise import told
from bench.power import observed, sentence
from bench.statistics import Interval, median_ratio
from bench.suites.catalogue import load_suite
from bench.tables import show, tell
from engines.errors import UserError
from engines.processor import Processor
from engines.session import Session, open_session
from engines.units import human_size


def latency(options: Namespace) -> int:
    """Every phase's quantiles, for small and large requests apart; end to end also as a ratio to the first,
    beside what the first is against itself."""
    folders: list[Path] = options.directories
    arms = {f"{path} #{i + 1}" if path in folders[:i] else str(path): path for i, path in enumerate(folders)}
    baseline = next(iter(arms))
    batches = sorted({1, *options.batch})
    if batches[-1] > options.requests:
        raise UserError(f"a batch of {batches[-1]} takes as many requests: expected --requests {batches[-1]}")
    twice = {baseline: folders[0], baseline + AGAIN: folders[0]}
    timed = timings(twice | arms, options, batches=batches)
    summary = summarize(timed)
    ratios = {name: _to_first(timed, baseline, name) for name in summary}
    noise = ratios.pop(baseline + AGAIN)
    shown = Table(
        "",
        *(f"{metric} p50 / p95 / p99" for metric in METRICS),
        "e2e ratio",
        "first against itself",
        box=None,
        header_style="bold",
    )
    slices = Table("", "", *PHASES, "n", box=None, header_style="bold")
    found = []
    for name, ratio in ratios.items():
        metrics, own = summary[name], of_arm(timed, name)
        ratio_told, noise_told = (told(x) if x else "-" for x in (ratio, noise))
        shown.add_row(name, *(figure(metrics[metric]) for metric in METRICS), ratio_told, noise_told)
        parts = breakdown([timing for timing in timed if timing.arm == name])
        for part in parts:
            cells = [figure(part.get(phase)) for phase in PHASES]
            slices.add_row(name if part is parts[0] else "", part["slice"], *cells, str(part["n"]))
        spent = observed(of_arm(timed, baseline), own, options.price_per_hour, options.currency)
        found.append(
            {
                "path": str(arms[name]),
                **metrics,
                "e2e_ratio": asdict(ratio) if ratio else None,
                "slices": parts,
                "observed": [row.model_dump(mode="json") for row in spent],
            }
        )
        if not options.json:
            tell(f"{name}: {sentence(spent)}")
    sizes = {"requests": options.requests, "repeats": options.repeats, "batches": batches}
    show(shown, {**sizes, "noise": asdict(noise) if noise else None, "arms": found}, options)
    if not options.json:
        show(slices, {}, options)
    return 0


def _to_first(timed: Sequence[Timing], first: str, name: str) -> Interval | None:
    before, after = (table(of_arm(timed, arm), "e2e_latency_ms") for arm in (first, name))
    return median_ratio(before, after) if len(before) > 1 else None


def load(options: Namespace) -> int:
    """Several numbers of clients in turn; exit code 1 when any request failed."""
    from bench.load import run

    asked = replace(_load(options.url, options), seconds=options.seconds, seed=options.seed)
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
    """The same Poisson arrivals at every server, at several rates; exit code 1 when a request failed."""
    from bench.open_loop import FIGURES, Plan, compare, figures, ratio

    loads = [_load(url, options) for url in options.urls]
    urls = [load.url for load in loads]
    if len(set(urls)) < len(urls):
        raise UserError("a server is named twice: expected different ones; the first is asked twice anyway")
    plan = Plan(tuple(options.rates), options.requests, options.rounds, options.seed)
    outcome = compare(urls, loads[0], plan, tell)
    heads = ("rate", "per s", "server", "answered", *(f"{name} p50 / p95 / p99" for name in FIGURES))
    shown = Table(*heads, "e2e ratio", "first against itself", "sent late p99", box=None, header_style="bold")
    found: list[dict[str, Any]] = []
    for rate in dict.fromkeys(rate for rate, _ in outcome.asked):
        first = outcome.asked[rate, urls[0]]
        noise = ratio(first, outcome.asked[rate, urls[0] + AGAIN], "e2e_latency_ms")
        for url in urls:
            rounds = outcome.asked[rate, url]
            asked = [one for part in rounds for one in part]
            e2e = ratio(first, rounds, "e2e_latency_ms")
            row = {"rate": rate, "per_s": rate * outcome.capacity, "url": url, **figures(asked)}
            row |= {"e2e_ratio": asdict(e2e) if e2e else None, "noise": asdict(noise) if noise else None}
            row["slices"] = {
                name: figures(part)
                for name, picture in (("with a picture", True), ("without", False))
                if (part := [one for one in asked if one.picture is picture])
            }
            found.append(row)
            failed = sum(row["problems"].values())
            shown.add_row(
                f"{rate:g}" if rate else "one by one",
                f"{row['per_s']:.3g}" if rate else "",
                url,
                f"{len(asked) - failed} of {len(asked)}",
                *(figure(row[name]) for name in FIGURES),
                *(told(x) if x else "-" for x in (e2e, noise)),
                f"{row['late_p99_ms']:.3g}",
            )
            for problem, times in row["problems"].items():
                tell(f"{url} at {rate:g}, {times} times: {problem}")
    show(shown, {"capacity_per_s": outcome.capacity, "seed": plan.seed, "rows": found}, options)
    return int(any(row["problems"].keys() - {"turned away"} for row in found))


def _load(url: str, options: Namespace) -> Load:
    """What a server is asked; its address may be given as clients of OpenAI's write it, with /v1."""
    return Load(
        url=url.rstrip("/").removesuffix("/v1"),
        output_tokens=options.output_tokens,
        images=options.images / 100,
        image_size=options.image_size,
        key=options.api_key_file.read_text().strip() if options.api_key_file else None,
    )


def timings(
    arms: dict[str, Path],
    options: Namespace,
    sessions: dict[str, Session] | None = None,
    batches: Sequence[int] = (1,),
) -> list[Timing]:
    """Every arm on the same requests, which the first arm's processor prepares. What `sessions` holds open is
    not opened once more."""
    items = load_suite(options.suite, options.requests, options.seed)
    processor = Processor.load(next(iter(arms.values())))
    held = sessions or {}
    opened = {
        name: held.get(name.removesuffix(AGAIN)) or open_session(path, threads=options.threads)
        for name, path in arms.items()
    }
    return measure(
        {name: here(session) for name, session in opened.items()},
        [processor(item.messages) for item in items],
        output_tokens=options.output_tokens,
        repeats=options.repeats,
        warmup=options.warmup,
        batches=batches,
        progress=progress("latency"),
    )


def progress(title: str) -> Callable[[int, int], None]:
    """One line rewritten in place on a terminal, silence elsewhere."""

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{title}: {done}/{total}", end=end, file=sys.stderr, flush=True)

    return report
