"""One HTML page that shows what was built, how it did, and why: no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.examples import Example
from bench.figures import VariantEvidence, accuracy_row, figures, signed, speed
from bench.gate import Check, Limits, Verdict
from bench.latency import table
from bench.power import UNREADABLE
from bench.sentences import sentence, title, whole
from bench.slices import slice_table
from engines.artifact import write_whole
from engines.units import human_size

__all__ = ["VariantEvidence", "write_report"]

COLOURS = 8  # of the page's palette; the baseline has the first
ICONS = {"PASS": "✓", "FAIL": "✕", "INCONCLUSIVE": "?", "UNMEASURED": "–"}
PACKAGES = ("onnxruntime", "torch", "transformers", "numpy")


def write_report(
    summary: Mapping[str, Any],
    variants: Sequence[VariantEvidence],
    out: Path,
    examples: Sequence[Example] = (),
) -> None:
    """Writes the page. `summary` is what `build all --json` prints; `variants` are the evidence behind it,
    `examples` items they answer differently.
    """
    baseline = next((v for v in variants if v.gate.baseline == v.gate.candidate), variants[0])
    ordered = [baseline, *(v for v in variants if v is not baseline)]
    colours = {v.name: i % COLOURS for i, v in enumerate(ordered)}
    facts = {row["name"]: row for row in summary["variants"]}
    limits = baseline.gate.limits
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html").render(
        model=summary["model"],
        verdict=summary["verdict"],
        subtitle=_subtitle(summary, baseline),
        sentence=whole({v.name: v.gate for v in ordered}),
        icons=ICONS,
        palette=COLOURS,
        colours=colours,
        cards=[_card(v, facts[v.name]) for v in ordered],
        figures=figures(
            ordered,
            baseline,
            {name: row["bytes"] for name, row in facts.items()},
            {name: row["peak_memory_bytes"] for name, row in facts.items() if row["peak_memory_bytes"]},
            colours,
        ),
        slices=slice_table({v.name: v.gate.slices for v in ordered if v is not baseline}),
        examples=examples,
        budget_lead=_budget_lead(limits),
        budgets=[{"name": v.name, "bars": _bars(facts[v.name], limits)} for v in ordered],
        commands=_commands(summary),
        environment=_environment(summary),
    )
    write_whole(Path(out), page)


def _subtitle(summary: Mapping[str, Any], baseline: VariantEvidence) -> str:
    verdicts = [row["verdict"] for row in summary["variants"]]
    passed, elsewhere = verdicts.count(Verdict.PASS), verdicts.count(Verdict.UNMEASURED)
    compared = f"against {baseline.name} on {len(baseline.observations):,} items"
    rest = f"; {elsewhere} are for devices that are not here" if elsewhere else ""
    return f"{passed} of {len(verdicts) - elsewhere} variants pass, {compared}{rest}"


def _card(v: VariantEvidence, facts: Mapping[str, Any]) -> dict[str, Any]:
    shown = []
    if row := accuracy_row(v):
        change, low, high = (signed(x or 0.0) for x in (row.delta, row.ci_low, row.ci_high))
        interval = f"{change} ({low} to {high})"
        shown.append(("accuracy", f"{row.candidate:.1f} %", interval))
    elif v.observations:
        right, n = sum(x.correct for x in v.observations), len(v.observations)
        accuracy = 100 * sum(x.score for x in v.observations) / n
        shown.append(("accuracy", f"{accuracy:.1f} %", f"{right:,} of {n:,} items right"))
    if v.timings:
        median = float(np.median(table(v.timings, "e2e_latency_ms")))
        pace = f"{1 / speed(v).estimate:.2g}× as fast" if v.compared else "end to end, median"
        shown.append(("latency", f"{median:.3g} ms", pace))
    shown.append(("on disk", human_size(facts["bytes"]), ""))
    if peak := facts["peak_memory_bytes"]:
        shown.append(("peak memory", human_size(peak), ""))
    if seen := [timing.device for timing in v.timings if timing.device]:
        power, busy = (mean(getattr(x, name) for x in seen) for name in ("power_w", "utilization_percent"))
        hottest = max(usage.temperature_c for usage in seen)
        shown.append(("GPU while it answered", f"{power:.0f} W", f"{hottest} °C at most, {busy:.0f} % busy"))
    figures = [row for row in v.gate.observed if not seen or row.metric not in ("power", "temperature")]
    shown += [(row.metric, f"{row.candidate:.3g} {row.unit}", "") for row in figures if row.candidate]
    if unread := [row.metric for row in figures if row.reason == UNREADABLE]:
        shown.append((" and ".join(unread[:2]), "-", UNREADABLE))
    return {
        "name": v.name,
        "verdict": v.gate.verdict,
        "facts": shown,
        "sentence": sentence(v.name, v.gate),
        "checks": [
            (c.verdict, title(c) + (" (waived)" if c.waived else ""), _figures(c), c.reason)
            for c in v.gate.checks
        ],
        "waivers": v.gate.waivers,
    }


def _figures(check: Check) -> str:
    """Baseline and candidate in the check's unit."""
    if check.unit == "bytes":
        shown = [None if x is None else human_size(x) for x in (check.baseline, check.candidate)]
    else:
        unit = {"points": " %", "ms": " ms", "nats": " nats"}.get(check.unit, "")
        shown = [None if x is None else f"{x:.3g}{unit}" for x in (check.baseline, check.candidate)]
    p = "" if check.p_value is None else f", McNemar p = {check.p_value:.2g}"
    return " → ".join(x for x in shown if x) + p


def _budget_lead(limits: Limits) -> str:
    disk, memory = (
        human_size(x) if x else "no limit" for x in (limits.max_bytes, limits.max_peak_memory_bytes)
    )
    where = f"a context of {limits.context:,} tokens and a batch of {limits.batch}"
    return f"Bytes on disk ({disk}) and peak memory of a process at {where} ({memory})."


def _bars(facts: Mapping[str, Any], limits: Limits) -> list[dict[str, Any]]:
    bars = []
    for label, value, limit in (
        ("disk", facts["bytes"], limits.max_bytes),
        ("memory", facts["peak_memory_bytes"], limits.max_peak_memory_bytes),
    ):
        if value is None:  # of a device that is not here
            continue
        share = value / limit if limit else 0.0
        percent = f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "< 0.1%"
        bars.append(
            {
                "label": label,
                "value": human_size(value),
                "share": percent if limit else "",
                "percent": f"{min(100 * share, 100):.2f}",
                "over": share > 1,
            }
        )
    return bars


def _commands(summary: Mapping[str, Any]) -> str:
    recipe = summary.get("recipe", {})
    line = ["python", "-m", "build", "all", "--recipe", recipe.get("name", "micro"), "--out", summary["out"]]
    if recipe.get("model", "embedded") != "embedded":
        line += ["--model", recipe["model"]]
    return f"{shlex.join(line)}\npython -m build verify --out {shlex.quote(summary['out'])}"


def _environment(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = summary.get("environment", {})
    packages = known.get("packages", {})
    largest = summary.get("peak_memory_bytes")
    commit = str(known.get("commit") or "")[:12] + (", with changes" if known.get("dirty") else "")
    rows = [
        ("processor", known.get("processor")),
        ("memory", human_size(known["memory_bytes"]) if known.get("memory_bytes") else None),
        ("system", known.get("system")),
        ("Python", known.get("python")),
        ("packages", ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)),
        ("commit", commit),
        ("took", f"{summary['seconds']:.0f} s" if "seconds" in summary else None),
        ("largest process", human_size(largest) if largest else None),
    ]
    return [(name, str(value)) for name, value in rows if value]
