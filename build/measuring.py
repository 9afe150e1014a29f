"""What is measured once of every variant, as stages of a build: its answers, and its peak memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.process import apart
from bench.verdict import Limits
from build.console import Console
from build.recipe import Evaluate, Quantize
from build.stages import Step, calibration_file, file_digest
from build.store import Entry, Work
from engines.artifact import write_json
from engines.errors import UserError

SHARD = "-shard-"  # after the variant in the name of a part of its evaluation


def items(settings: Evaluate, quantize: Quantize, base: Entry) -> Step:
    """The evaluation items, none of which the calibration set may hold, and all of which fit the context."""
    from bench.suites.catalogue import suite_files, suite_packages

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        from bench.context import check_context
        from bench.suites.catalogue import load_suite
        from bench.tasks import read_items, write_items
        from engines.processor import Processor

        chosen = load_suite(settings.suite, settings.items, settings.seed)
        seen = {item.id for item in read_items(calibration_file(quantize))}
        shared = [item.id for item in chosen if item.id in seen]
        if shared:
            raise UserError(
                f"{len(shared)} evaluation items are in the calibration set (first: {shared[0][:12]}); "
                "a model must not be scored on what it was tuned on: change one of the two sets"
            )
        processor = Processor.load(base.path)
        asked = [(item, conversation) for item in chosen for conversation in item.conversations]
        lengths = [len(processor(conversation).input_ids) for _, conversation in asked]
        context = processor.config.text.max_position_embeddings
        check_context([item for item, _ in asked], lengths, settings.max_tokens, context)
        out.mkdir()
        write_items(out / "items.jsonl", chosen)
        return {}

    work = Work(
        stage="items",
        name=Path(settings.suite.partition(":")[0]).stem,
        config=settings.model_dump(include={"suite", "items", "seed", "max_tokens"}),
        inputs={"checkpoint": base.digest, "calibration": file_digest(calibration_file(quantize))}
        | {file.name: file_digest(file) for file in suite_files(settings.suite)},
        code=items,
        packages=("numpy", "pillow", "tokenizers", *suite_packages(settings.suite)),
    )
    return work, run


def evaluated(
    variant: str,
    artifact: Entry,
    asked: Entry,
    settings: Evaluate,
    device: str,
    console: Console,
    shard: int,
    baseline: Entry | None,
) -> Step:
    """One shard of the items answered, and how far its next-token distributions are from the baseline's, of
    which this is the same shard.
    """
    name = variant if settings.shards == 1 else f"{variant}{SHARD}{shard + 1}-of-{settings.shards}"

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        from bench.evaluation import evaluate_shard

        with console.progress(f"{name} answers") as report:
            apart(
                evaluate_shard,
                artifact.path,
                asked.path / "items.jsonl",
                baseline.path if baseline else None,
                out,
                shard=shard,
                shards=settings.shards,
                device=device,
                max_tokens=settings.max_tokens,
                batch_size=settings.batch_size,
                fidelity_items=settings.fidelity_items,
                progress=report,
            )
        return {}

    work = Work(
        stage="evaluate",
        name=name,
        config={"device": device, "shard": [shard + 1, settings.shards]}
        | settings.model_dump(include={"max_tokens", "batch_size", "fidelity_items"}),
        inputs={"artifact": artifact.digest, "items": asked.digest}
        | ({"baseline": baseline.digest} if baseline else {}),
        code=evaluated,
        packages=("onnxruntime", "torch", "transformers", "tokenizers", "numpy", "pillow", "rapidfuzz"),
        measures=True,
    )
    return work, run


def memory(variant: str, artifact: Entry, limits: Limits, device: str) -> Step:
    """Peak memory of a process that opens the variant and fills its context."""

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        from bench.resources import peak_memory

        peak = peak_memory(artifact.path, context=limits.context, batch=limits.batch, device=device)
        out.mkdir()
        write_json(out / "memory.json", peak.model_dump())
        return {}

    work = Work(
        stage="memory",
        name=variant,
        config={"context": limits.context, "batch": limits.batch, "device": device},
        inputs={"artifact": artifact.digest},
        code=memory,
        packages=("onnxruntime", "torch", "transformers", "tokenizers", "numpy"),
        measures=True,
    )
    return work, run
