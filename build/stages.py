"""Each stage that makes a variant as (the work it is, the function that does it); measuring.py has the rest.

A stage makes the folder ``out``, may keep resumable state in ``scratch``, and returns further fields of
the manifest. What is heavy is imported when a stage runs, so that planning and cache hits stay light.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.process import apart
from bench.verdict import Limits
from build.code import ROOT
from build.recipe import KINDS, Export, Quantize
from build.source import Source
from build.store import Entry, Run, Work
from engines.artifact import File, canonical_digest, hash_file
from engines.device import find_gpu
from engines.errors import UserError
from engines.tensorrt.targets import FP16, INT4, TARGETS, find_target

if TYPE_CHECKING:  # a forecast, which needs no progress bar, stands on this module
    from build.console import Console

DEFAULT_CALIBRATION = ROOT / "quantize" / "calibration.jsonl"
STANDARD = "-standard"  # ends the names of graphs that engines are compiled from
CACHE_SAMPLES = 8  # calibration samples whose largest keys and values set the scales of an int8 cache

Step = tuple[Work, Run]


def checkpoint(source: Source) -> Step:
    """Takes the checkpoint into the store, checked and copied: later edits of the source change nothing."""
    from engines.checkpoint import Checkpoint

    opened = Checkpoint.open(source.path)
    files = {path.relative_to(source.path).as_posix(): path for path in opened.files()}
    hashes = {name: hash_file(path).sha256 for name, path in sorted(files.items())}

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        for name, path in files.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
        engine = {"runtime": "transformers", "execution_provider": "CPU", "precision": "as stored"}
        return {"source": _source_fields(source), "engine": engine}

    work = Work(
        stage="checkpoint",
        name="fp16",
        variant="fp16",
        config={"repo": source.repo, "revision": source.revision, "license": source.license},
        inputs={"files": canonical_digest(hashes)},
        code=checkpoint,
        packages=("transformers", "torch"),
    )
    return work, run


def quantized(variant: str, base: Entry, source: Source, settings: Quantize, console: Console) -> Step:
    """An INT4 checkpoint in the compressed-tensors layout."""
    method, calibration = str(KINDS[variant].method), calibration_file(settings)

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        from quantize.run import quantize

        with console.progress(f"{method} samples, layers") as report:
            receipt = apart(
                quantize,
                base.path,
                out,
                method=method,
                group_size=settings.group_size,
                max_kl=settings.max_kl,
                calibration=calibration,
                work_dir=scratch,
                damping=settings.damping,
                progress=lambda step, done, total: report(done, total),
            )
        return {"source": _source_fields(source), "quantization": quantization_fields(receipt)}

    work = Work(
        stage="quantize",
        name=variant,
        variant=variant,
        config={"method": method, **settings.model_dump(exclude={"calibration"})},
        inputs={"checkpoint": base.digest, "calibration": file_digest(calibration)},
        code=quantized,
        packages=("torch", "transformers", "compressed-tensors", "numpy"),
    )
    return work, run


def quantization_fields(receipt: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says of `quantize`'s work; eight_bit_layers where some may be kept in 8 bits."""
    found = {
        "method": receipt["method"],
        "bits": receipt["bits"],
        "group_size": receipt["group_size"],
        "symmetric": receipt["symmetric"],
        "components": ["decoder linears"],
        "calibration": receipt["calibration"]["sha256"],
    }
    return found | ({"eight_bit_layers": list(receipt["eight_bit"])} if "eight_bit" in receipt else {})


def exported(variant: str, base: Entry, source: Source, settings: Export, quantize: Quantize) -> Step:
    """ONNX graphs of a checkpoint, dense or quantised; an int8 cache is scaled on calibration samples."""
    kind, calibration = KINDS[variant], calibration_file(quantize)

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        from engines.checkpoint import Checkpoint
        from engines.export import export
        from engines.processor import Processor
        from engines.self_test import record
        from quantize.calibration import prepare, read_samples

        prompts = []
        if kind.int8_cache:
            prompts = prepare(read_samples(calibration)[:CACHE_SAMPLES], Processor.load(base.path))
        export(Checkpoint.open(base.path), out, accuracy_level=settings.accuracy_level, cache_prompts=prompts)
        record(out)
        precision = "W4A16" if kind.method else "W16A32"
        engine = {"runtime": "onnxruntime", "execution_provider": "CPU", "precision": precision}
        engine |= {"cache": "int8"} if kind.int8_cache else {}
        fields = {"source": _source_fields(source), "engine": engine}
        return (
            {**fields, "quantization": base.manifest.quantization} if base.manifest.quantization else fields
        )

    work = Work(
        stage="export",
        name=variant,
        variant=variant,
        config=(settings.model_dump() if kind.method else {})
        | ({"cache": "int8", "samples": CACHE_SAMPLES} if kind.int8_cache else {}),
        inputs={"checkpoint": base.digest}
        | ({"calibration": file_digest(calibration)} if kind.int8_cache else {}),
        code=exported,
        packages=("onnx", "onnxruntime", "numpy"),
    )
    return work, run


def standard(base: Entry, source: Source) -> Step:
    """Graphs of standard operators, which engines for every target are compiled from."""

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        from engines.checkpoint import Checkpoint
        from engines.export import export_standard

        export_standard(Checkpoint.open(base.path), out)
        fields = {"source": _source_fields(source), "quantization": base.manifest.quantization}
        return {name: value for name, value in fields.items() if value}

    work = Work(
        stage="export",
        name=f"{base.manifest.name}{STANDARD}",
        config={},
        inputs={"checkpoint": base.digest},
        code=standard,
        packages=("onnx", "numpy"),
    )
    return work, run


def check_targets(variants: Sequence[str]) -> None:
    """UserError unless engines of every variant can be compiled here, before any work is done."""
    gpu = find_gpu()
    for variant in variants:
        if target := KINDS[variant].target:
            find_target(target, INT4 if KINDS[variant].method else FP16, gpu).runtime.check_installed()


def engines(variant: str, network: Entry, source: Source, limits: Limits) -> Step:
    """TensorRT engines of those graphs, for the context and batch of the gate."""
    target = str(KINDS[variant].target)
    runtime = TARGETS[target].runtime

    def run(out: Path, scratch: Path) -> dict[str, Any]:
        from engines.tensorrt.engines import Limits as Sizes
        from engines.tensorrt.engines import compile_artifact

        sizes = Sizes(context=limits.context, batch=limits.batch)
        plans = apart(compile_artifact, network.path, out, target, sizes)
        engine = {
            "runtime": runtime.name,
            "execution_provider": runtime.provider.removesuffix("ExecutionProvider"),
            "precision": "W4A16" if KINDS[variant].method else "fp16",
            "target": target,
            "kernels": {name: len(plan.layers) for name, plan in plans.items()},
        }
        fields = {"quantization": network.manifest.quantization, "engine": engine}
        return {"source": _source_fields(source)} | {name: value for name, value in fields.items() if value}

    work = Work(
        stage="tensorrt",
        name=variant,
        variant=variant,
        config={"target": target, "context": limits.context, "batch": limits.batch},
        inputs={"network": network.digest},
        code=engines,
        packages=(*runtime.packages, "onnx"),
    )
    return work, run


def calibration_file(settings: Quantize) -> Path:
    """What layers are quantised on, by default the packaged set."""
    return DEFAULT_CALIBRATION if settings.calibration == "default" else Path(settings.calibration)


def file_digest(path: Path) -> str:
    """For a stage's inputs; UserError where it cannot be read."""
    try:
        digest: File = hash_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    return f"sha256:{digest.sha256}"


def _source_fields(source: Source) -> dict[str, Any]:
    return {"repo": source.repo, "revision": source.revision, "license": source.license}
