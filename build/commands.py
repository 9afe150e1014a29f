"""What each ``python -m build`` command does: results on stdout, progress on stderr, exit code returned."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console as Rich
from rich.table import Table

from bench.verdict import EXIT
from build.cluster import connected
from build.console import Console
from build.forecast import memory_bytes
from build.pipeline import build_all
from build.place import Here, Place
from build.plan import check_memory, plan
from build.publish import published, verify
from build.recipe import Recipe, load_recipe
from build.source import Source, resolve
from build.store import Store
from engines.artifact import MANIFEST, Manifest
from engines.config import ModelConfig
from engines.errors import UserError
from engines.memory import available_memory, check_address_space
from engines.units import duration, human_size

DEFAULT_MEMORY = 6_000_000_000  # for which plan tells the longest contexts
COLOUR = {"PASS": "green", "FAIL": "red", "INCONCLUSIVE": "yellow", "UNMEASURED": "blue"}


def all_command(options: Namespace) -> int:
    recipe, source = _load(options)
    if options.memory:
        check_memory(recipe, source, options.memory)
    console = Console()
    with _place(options, recipe, source, console) as place:
        summary = build_all(recipe, source, options.out, place, console)
    table = _table("variant", "verdict", "size", "peak memory", "decided by", "published at")
    for variant in summary["variants"]:
        deciding = [check for check in variant["checks"] if not check["waived"]]
        decisive = next((c for c in deciding if c["verdict"] == variant["verdict"] != "PASS"), None)
        table.add_row(
            variant["name"],
            _verdict(variant["verdict"]),
            human_size(variant["bytes"]),
            human_size(peak) if (peak := variant["peak_memory_bytes"]) else "-",
            f"{decisive['metric']}: {decisive['reason']}" if decisive else "",
            variant["path"] or "-",
        )
    _show(table, summary, options)
    if not options.json:
        took, largest = duration(summary["seconds"]), human_size(summary["peak_memory_bytes"])
        shown = options.out / source.name / "report.html"
        print(f"{summary['verdict']} after {took}, {largest} in the largest process: {shown}")
    return EXIT[summary["verdict"]]


def plan_command(options: Namespace) -> int:
    recipe, source = _load(options)
    if options.memory:
        check_memory(recipe, source, options.memory)
    store = Store(options.out / ".store", url=options.store)
    planned = plan(recipe, source, store, options.out, options.memory or DEFAULT_MEMORY)
    table = _table("stage", "name", "runs", "why", "about")
    for step in planned["steps"]:
        seconds = duration(step["seconds"]) if step["runs"] else ""
        table.add_row(step["stage"], step["name"], "yes" if step["runs"] else "no", step["reason"], seconds)
    _show(table, planned, options)
    if not options.json:
        at, within = f"{planned['context']} tokens x {planned['batch']}", human_size(planned["memory"])
        needs = _table("variant", "disk", f"memory at {at}", f"longest context in {within}")
        for variant in planned["variants"]:
            figures = human_size(variant["disk_bytes"]), human_size(variant["memory_bytes"])
            longest = f"{variant['longest_context']:,}" if variant["longest_context"] else "does not fit"
            needs.add_row(variant["name"], *figures, longest)
        Rich(width=120).print(needs)
        print(f"about {duration(planned['seconds'])} and {human_size(planned['disk_bytes'])} of disk")
    return 0


def list_command(options: Namespace) -> int:
    rows = []
    table = _table("model", "variant", "verdict", "size", "runtime", "digest")
    for folder in published(options.out):
        manifest = Manifest.read(folder)
        gate = _gate(folder)
        runtime = (manifest.engine or {}).get("runtime", "any that reads the checkpoint")
        row = {
            "model": folder.parent.name,
            "variant": folder.name,
            "path": str(folder),
            "verdict": gate.get("verdict", "UNMEASURED"),
            "bytes": manifest.bytes,
            "digest": manifest.digest,
            "runtime": runtime,
        }
        rows.append(row)
        table.add_row(
            row["model"],
            row["variant"],
            _verdict(row["verdict"]),
            human_size(row["bytes"]),
            runtime,
            row["digest"][:19],
        )
    if not rows and not options.json:
        print(
            f"nothing is published below {options.out}; build with: python -m build all --out {options.out}"
        )
        return 0
    _show(table, {"variants": rows}, options)
    return 0


def inspect_command(options: Namespace) -> int:
    manifest = Manifest.read(options.artifact)
    document = {
        "digest": manifest.digest,
        **manifest.model_dump(exclude_none=True),
        "gate": _gate(options.artifact),
    }
    if options.json:
        print(json.dumps(document))
    else:
        Rich(width=120).print_json(data=document)
    return 0


def verify_command(options: Namespace) -> int:
    folders = options.artifacts or published(options.out)
    if not folders:
        raise UserError(f"nothing to verify below {options.out}: expected <model>/<variant>/{MANIFEST}")
    problems = {str(folder): verify(folder) for folder in folders}
    for folder, found in problems.items():
        for line in found or [f"{folder}: every file is as its manifest says"]:
            print(line)
    ok = not any(problems.values())
    if options.json:
        print(json.dumps({"ok": ok, "problems": problems}))
    return 0 if ok else 1


def schema_command(options: Namespace) -> int:
    print(json.dumps(Recipe.model_json_schema(), indent=2))
    return 0


@contextmanager
def _place(options: Namespace, recipe: Recipe, source: Source, console: Console) -> Iterator[Place]:
    """This machine, or a cluster with --on; of its stages none takes more memory than the baseline's run."""
    gate, config = recipe.gate, ModelConfig.load(source.path)  # what cannot be built leaves no folder behind
    memory = memory_bytes(config, "fp16", recipe.quantize.group_size, gate.context, gate.batch)
    if not options.on:
        check_address_space()
        if memory > (free := available_memory()):
            raise UserError(
                f"the baseline at context {gate.context} x {gate.batch} takes about {human_size(memory)}, "
                f"{human_size(free)} are free: close other programs, or raise the container's limit"
            )
    store = Store(options.out / ".store", console.say, options.store)
    store.root.mkdir(parents=True, exist_ok=True)
    if not options.on:
        yield Here(store)
        return
    with connected(options.on, store, memory) as cluster:
        yield cluster


def _load(options: Namespace) -> tuple[Recipe, Source]:
    recipe = load_recipe(options.recipe, model=options.model, only=options.only, overrides=options.set)
    return recipe, resolve(recipe.model)


def _gate(folder: Path) -> dict[str, Any]:
    path = folder / "evidence" / "gate.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show(table: Table, document: dict[str, Any], options: Namespace) -> None:
    if options.json:
        print(json.dumps(document))
    else:
        Rich(width=None if Rich().is_terminal else 140).print(table)


def _verdict(verdict: str) -> str:
    return f"[{COLOUR[verdict]}]{verdict}[/]"
