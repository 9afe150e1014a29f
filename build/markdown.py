"""The summary of a build as Markdown: what a pull request is told."""

from __future__ import annotations

from typing import Any

from bench.breakdown import PHASES, figure
from bench.power import sentence
from bench.resources import human_size
from bench.verdict import Row


def markdown(summary: dict[str, Any]) -> str:
    """One row for each variant, and a line for every check against one, and for every waiver."""
    lines = [
        f"### {summary['model']}: {summary['verdict']}",
        "",
        "| variant | verdict | points against the baseline | end-to-end ratio | on disk | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    against = []
    for variant in summary["variants"]:
        checks = {check["metric"]: check for check in variant["checks"]}
        peak = variant["peak_memory_bytes"]
        cells = [f"`{variant['name']}`", variant["verdict"]]
        cells += [_figure(checks.get("accuracy")), _figure(checks.get("e2e_latency_ms"))]
        cells += [human_size(variant["bytes"]), human_size(peak) if peak else "-"]
        lines.append(f"| {' | '.join(cells)} |")
        against += [
            f"- `{variant['name']}` {check['metric']}: {check['verdict']}, {check['reason']}"
            for check in variant["checks"]
            if check["verdict"] in ("FAIL", "INCONCLUSIVE")
        ]
        against += [
            f"- `{variant['name']}` waiver {waiver['status']}: {waiver['check']}, until {waiver['expires']}: "
            f"{waiver['reason']}"
            for waiver in variant["waivers"]
        ]
    lines += _phases(summary["variants"])
    return "\n".join(lines + ([""] if against else []) + against) + "\n"


def _phases(variants: list[dict[str, Any]]) -> list[str]:
    """One row for each variant that was timed, and a line of what its answers took."""
    timed = [variant for variant in variants if variant.get("latency")]
    if not timed:
        return []
    heads = [phase.replace("_latency", "").removesuffix("_ms") for phase in PHASES]
    lines = ["", "One request at a time, ms, p50 / p95 / p99:", "", f"| variant | {' | '.join(heads)} | n |"]
    lines.append("|---" * (len(heads) + 2) + "|")
    for variant in timed:
        whole = variant["latency"][0]
        cells = [f"`{variant['name']}`", *(figure(whole.get(phase)) for phase in PHASES), str(whole["n"])]
        lines.append(f"| {' | '.join(cells)} |")
    rows = {variant["name"]: [Row.model_validate(row) for row in variant["observed"]] for variant in timed}
    return [*lines, "", *(f"- `{name}` {sentence(found)}" for name, found in rows.items() if found)]


def _figure(check: dict[str, Any] | None) -> str:
    """The difference or ratio with its interval; an empty cell where it was not measured."""
    if check is None or check.get("delta") is None:
        return "-"
    form = ".3f" if check["relative"] else "+.1f"
    low, high = check.get("ci_low"), check.get("ci_high")
    interval = f" ({low:{form}} to {high:{form}})" if low is not None and high is not None else ""
    noise = f", noise {check['noise_low']:.3f} to {check['noise_high']:.3f}" if check.get("noise") else ""
    return f"{check['delta']:{form}}{interval}{noise}"
