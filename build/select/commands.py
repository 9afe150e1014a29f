"""`python -m build select`: prints the choice with its figures, and a reason for every other variant."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from build.select.catalogue import Published
from build.select.choice import Candidate, Choice, Wanted, choose
from build.select.devices import Device, find_devices
from build.select.remote import catalogue_at
from engines.units import human_size

NOTHING_FITS = 3


def select_command(options: Namespace) -> int:
    devices = find_devices(options.device)
    wanted = Wanted(options.context, options.batch, options.memory, options.objective, options.accuracy)
    with catalogue_at(options.catalogue, options.model) as catalogue:
        choice = choose(catalogue, devices, wanted)
        if options.json:
            print(json.dumps(_document(choice) | {"unused": _unused(choice, devices)}))
        else:
            for device in devices:
                print(f"device: {device}")
            _print(choice, wanted, options.explain)
            for idle in _unused(choice, devices):
                print(f"note: {idle} stays unused, the choice runs on {devices[-1].name}")
    return 0 if choice.chosen else NOTHING_FITS


def _unused(choice: Choice, devices: Sequence[Device]) -> list[str]:
    """GPUs that the choice leaves idle."""
    return [d.name for d in devices if choice.chosen and d.gpu and d != choice.chosen.device]


def _print(choice: Choice, wanted: Wanted, explain: bool) -> None:
    if choice.chosen:
        published = choice.chosen.published
        print(f"choice: {published.variant} at {published.reference or published.path}")
        if published.reference:
            print(f"        to have it: python -m build pull {published.reference} --key FILE")
        _print_figures(choice.chosen, wanted)
    else:
        print("choice: none fits")
        if nearest := choice.nearest:
            print(f"nearest: {nearest.published.variant} {nearest.reason}; would fit: {nearest.remedy}")
    width = max(len(candidate.published.variant) for candidate in choice.candidates)
    for candidate in choice.candidates:
        if candidate is choice.chosen:
            continue
        mark, reason = ("fits" if candidate.accepted else "no"), candidate.reason.removeprefix("fits, but ")
        if not candidate.accepted and candidate.remedy:
            reason += f"; would fit: {candidate.remedy}"
        print(f"  {mark:4} {candidate.published.variant:{width}}  {reason}")
        if explain and candidate.estimate:
            _print_figures(candidate, wanted)


def _print_figures(candidate: Candidate, wanted: Wanted) -> None:
    found = candidate.estimate
    assert found is not None
    indent, device = " " * 7, candidate.device
    latency, throughput = f"{found.e2e_ms:.1f} ms", f"{found.tokens_per_s:.0f} tokens/s"
    print(f"{indent} on {device.name}")
    print(f"{indent} latency {latency}, first token {found.ttft_ms:.1f} ms ({found.latency_from})")
    print(f"{indent} throughput {throughput} at {wanted.batch} ({found.throughput_from})")
    if found.accuracy:
        percent, half = found.accuracy
        print(f"{indent} accuracy {percent:.1f} % +- {half:.1f} ({found.accuracy_from})")
    at = f"{wanted.context:,} tokens x {wanted.batch}"
    print(f"{indent} memory {human_size(found.memory_bytes)} at {at} ({found.memory_from})")
    if "forecast" in (found.latency_from, found.throughput_from):
        print(f"{indent} forecast from rates of {device.name}: {device.source}")


def _document(choice: Choice) -> dict[str, Any]:
    chosen, nearest = choice.chosen, choice.nearest
    return {
        "choice": chosen.published.variant if chosen else None,
        **(_place(chosen.published) if chosen else {"path": None}),
        "digest": chosen.published.manifest.digest if chosen else None,
        "nearest": {"variant": nearest.published.variant, "remedy": nearest.remedy} if nearest else None,
        "reasons": [_reason(candidate) for candidate in choice.candidates],
    }


def _place(published: Published) -> dict[str, str | None]:
    """Where a variant is: a folder, or what `build pull` takes."""
    if published.reference is None:
        return {"path": str(published.path)}
    return {"path": None, "reference": published.reference}


def _reason(candidate: Candidate) -> dict[str, Any]:
    found, device = candidate.estimate, candidate.device
    row: dict[str, Any] = {
        "variant": candidate.published.variant,
        "accepted": candidate.accepted,
        "reason": candidate.reason,
        "remedy": candidate.remedy or None,
        **_place(candidate.published),
        "runtime": candidate.published.runtime,
        "device": {"name": device.name, "architecture": device.architecture, "gpu": device.gpu},
    }
    if found is None:
        return row
    percent, half = found.accuracy or (None, None)
    return row | {
        "latency": {
            "e2e_latency_ms": found.e2e_ms,
            "ttft_ms": found.ttft_ms,
            "provenance": found.latency_from,
        },
        "throughput": {"output_tokens_per_s": found.tokens_per_s, "provenance": found.throughput_from},
        "accuracy": {"percent": percent, "plus_minus": half, "provenance": found.accuracy_from},
        "memory": {"bytes": found.memory_bytes, "provenance": found.memory_from},
    }
