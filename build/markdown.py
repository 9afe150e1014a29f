"""The summary of a build as Markdown: what a pull request is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.breakdown import PHASES, figure
from bench.examples import Example
from bench.power import sentence
from bench.slices import slice_table
from bench.verdict import Row
from engines.units import human_size

LISTED = 6  # checks against one variant
LONGEST = 60_000  # characters of a comment on GitHub are 65,536 at most


def markdown(summary: dict[str, Any], examples: Sequence[Example] = ()) -> str:
    """One row for each variant, a line for every check against one and for every waiver; folded below, every
    task in numbers and some items that are answered differently.
    """
    lines = [
        f"### {summary['model']}: {summary['verdict']}",
        "",
        summary["sentence"],
        "",
        "| variant | verdict | points against the baseline | end-to-end ratio | on disk | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    against = []
    for variant in summary["variants"]:
        checks = {check["metric"]: check for check in variant["checks"] if check.get("slice", "all") == "all"}
        peak = variant["peak_memory_bytes"]
        cells = [f"`{variant['name']}`", variant["verdict"]]
        cells += [_figure(checks.get("accuracy")), _figure(checks.get("e2e_latency_ms"))]
        cells += [human_size(variant["bytes"]), human_size(peak) if peak else "-"]
        lines.append(f"| {' | '.join(cells)} |")
        failed = [check for check in variant["checks"] if check["verdict"] in ("FAIL", "INCONCLUSIVE")]
        against += [
            f"- `{variant['name']}` {_name(check)}: {check['verdict']}, {check['reason']}"
            for check in failed[:LISTED]
        ]
        if len(failed) > LISTED:
            against.append(f"- `{variant['name']}` and {len(failed) - LISTED} more, all in report.html")
        against += [
            f"- `{variant['name']}` waiver {waiver['status']}: {waiver['check']}, until {waiver['expires']}: "
            f"{waiver['reason']}"
            for waiver in variant["waivers"]
        ]
    lines += _phases(summary["variants"])
    told = "\n".join(lines + ([""] if against else []) + against) + "\n"
    for folded in (_slices(summary["variants"]), _examples(examples)):
        told += folded if len(told) + len(folded) < LONGEST else ""
    return told


def _slices(variants: Sequence[dict[str, Any]]) -> str:
    """Points gained or lost by every variant on every task; bold where a loss is shown."""
    rows = {v["name"]: [Row.model_validate(row) for row in v["slices"]] for v in variants}
    table = slice_table(rows)
    if table is None:
        return ""
    lost = sum(any(cell.kind == "FAIL" for cell in cells) for *_, cells in table.rows)
    lines = [
        f"| task | items | baseline % | {' | '.join(f'`{name}`' for name in table.variants)} |",
        "|---" * (3 + len(table.variants)) + "|",
    ]
    for task, n, scored, cells in table.rows:
        told = [f"**{cell.text}**" if cell.kind == "FAIL" else cell.text for cell in cells]
        lines.append(f"| {task} | {n} | {scored} | {' | '.join(told)} |")
    return _folded(f"Every task in points: a loss is shown on {lost} of {len(table.rows)} (bold)", lines)


def _examples(examples: Sequence[Example]) -> str:
    lines = []
    for example in examples:
        lines.append(f"- {example.task}: {_plain(example.question)} Right: {_plain(example.expected)}")
        for answer in example.answers:
            names = ", ".join(f"`{name}`" for name in answer.names)
            lines.append(f"  - {names} ({100 * answer.score:.0f} %): {_plain(answer.text) or '(nothing)'}")
    return _folded("Where answers differ (pictures are in report.html)", lines) if lines else ""


def _folded(title: str, lines: Sequence[str]) -> str:
    return "\n".join(["", f"<details><summary>{title}</summary>", "", *lines, "", "</details>", ""])


def _plain(text: str) -> str:
    """A model's words as code, so that none of them is markup."""
    words = " ".join(text.split()).replace("`", "'")
    return f"`{words}`" if words else ""


def _phases(variants: list[dict[str, Any]]) -> list[str]:
    """A row for each variant that was timed and each load, and a line of what its answers took."""
    timed = [variant for variant in variants if variant.get("latency")]
    if not timed:
        return []
    heads = [phase.replace("_latency", "").removesuffix("_ms") for phase in PHASES]
    title = "One request after the other, then arriving at a share of what the baseline answers; ms,"
    lines = ["", f"{title} p50 / p95 / p99:", "", f"| variant | load | {' | '.join(heads)} | n |"]
    lines.append("|---" * (len(heads) + 3) + "|")
    for variant in timed:
        for part in variant["latency"]:
            kind, _, load = part["slice"].partition(" ")
            if kind == "all" or (kind == "load" and "," not in load):
                cells = [f"`{variant['name']}`", load or "-", *(figure(part.get(phase)) for phase in PHASES)]
                lines.append(f"| {' | '.join([*cells, str(part['n'])])} |")
    rows = {variant["name"]: [Row.model_validate(row) for row in variant["observed"]] for variant in timed}
    return [*lines, "", *(f"- `{name}` {sentence(found)}" for name, found in rows.items() if found)]


def _name(check: dict[str, Any]) -> str:
    where = check.get("slice", "all")
    return str(check["metric"]) if where == "all" else f"{check['metric']}, {where}"


def _figure(check: dict[str, Any] | None) -> str:
    """The difference or ratio with its interval; an empty cell where it was not measured."""
    if check is None or check.get("delta") is None:
        return "-"
    form = ".3f" if check["relative"] else "+.1f"
    low, high = check.get("ci_low"), check.get("ci_high")
    interval = f" ({low:{form}} to {high:{form}})" if low is not None and high is not None else ""
    noise = f", noise {check['noise_low']:.3f} to {check['noise_high']:.3f}" if check.get("noise") else ""
    return f"{check['delta']:{form}}{interval}{noise}"
