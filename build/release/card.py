"""The model card of a published variant: its README.md, with the front matter that the hub reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from bench.breakdown import figure
from bench.latency import METRICS, Timing, of_arm, summarize
from bench.power import sentence
from bench.records import read_records
from bench.verdict import Row
from engines.artifact import Manifest
from engines.engine_files import RTX, TENSORRT
from engines.units import human_size

CARD = "README.md"
Json = dict[str, Any]


def model_card(folder: Path, model: str, manifest: Manifest) -> str:
    """Markdown, made from the manifest and the evidence in `folder`; what was not measured is not said."""
    gate = _read(folder, "gate.json")
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(manifest), sort_keys=False, allow_unicode=True)}---",
        f"# {model} {manifest.variant}",
        _origin(manifest),
        _waivers(gate),
        f"## Results\n\n{_results(folder, manifest, gate)}",
        f"## Quantisation\n\n{_quantization(folder, manifest)}" if manifest.quantization else "",
        f"## Runtimes\n\n{_runtimes(manifest)}",
        f"## How to run it\n\n{_usage(manifest)}",
        f"## Licence\n\n{_licence(manifest)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(manifest: Manifest) -> Json:
    base = str(manifest.source.get("repo", ""))
    facts: Json = {
        "license": (manifest.source.get("license") or "unknown").lower(),
        "pipeline_tag": "image-text-to-text",
        "library_name": "transformers" if _checkpoint(manifest) else _runtime(manifest).lower(),
        "tags": ["qwen3-vl", *([manifest.quantization["method"], "int4"] if manifest.quantization else [])],
    }
    if "/" in base:  # a repository of the hub; a local folder is no link
        facts |= {"base_model": base}
        facts |= {"base_model_relation": "quantized"} if manifest.quantization else {}
    return facts


def _origin(manifest: Manifest) -> str:
    source = manifest.source
    revision = f" at revision `{source['revision']}`" if source.get("revision") else ""
    code = f"; code at `{source['commit'][:12]}`" if source.get("commit") else ""
    dirty = ", with changes that are in no commit" if source.get("dirty") else ""
    return (
        f"Made from `{source.get('repo', 'a local checkpoint')}`{revision}{code}{dirty}. "
        f"Digest `{manifest.digest}`. `manifest.json` says how each file came to be, `evidence/` holds every "
        "answer and timing behind the figures below, and `evidence/commands.sh` measures them again."
    )


def _waivers(gate: Json) -> str:
    standing = [waiver for waiver in gate.get("waivers", []) if waiver["status"] == "in force"]
    if not standing:
        return ""
    lines = [
        f"- **{waiver['check']}** is waived until {waiver['expires']}: {waiver['reason']}"
        for waiver in standing
    ]
    return "## Waived\n\nThe gate did **not** ask this variant to pass:\n\n" + "\n".join(lines)


def _results(folder: Path, manifest: Manifest, gate: Json) -> str:
    environment = _read(folder, "environment.json")
    gpu = (environment.get("gpu") or {}).get("name")
    where = " and ".join(str(name) for name in (gpu, environment.get("processor")) if name)
    verdict = gate.get("verdict", "none")
    lines = [f"Gate: **{verdict}**. Measured on {where or 'a machine that is not named'}.", ""]
    lines += ["| metric | slice | baseline | this variant | difference (interval) | limit | n | verdict |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    lines += [_row(check) for check in [*gate.get("checks", []), *gate.get("slices", [])]]
    rows = [Row.model_validate(row) for row in gate.get("observed", [])]
    timings = folder / "evidence" / "latency.jsonl"
    if timings.is_file():
        mine = of_arm(read_records(timings, Timing), str(manifest.variant))
        if mine:
            lines += ["", _latency(mine)]
            lines += [f"\nOne at a time: {sentence(rows)}."] if rows else []
    needs = manifest.requires
    if needs.get("memory_bytes"):
        at = f"{needs['context']:,} tokens x {needs['batch']}"
        lines += ["", f"Peak memory {human_size(needs['memory_bytes'])} at {at}, on {needs['device']}."]
    return "\n".join(lines)


def _row(check: Json) -> str:
    ratio = bool(check.get("relative"))

    def figure(name: str, sign: str = "") -> str:
        value = check.get(name)
        return "-" if value is None else f"{value:{sign}.4g}"

    sign = "" if ratio else "+"
    delta = figure("delta", sign)
    if check.get("ci_low") is not None or check.get("ci_high") is not None:
        delta += f" ({figure('ci_low', sign)} to {figure('ci_high', sign)})"
    if check.get("noise") is not None:
        delta += f", baseline against itself {figure('noise_low')} to {figure('noise_high')}"
    unit = "ratio" if ratio else check["unit"]
    cells = [
        f"{check['metric']} ({unit})",
        check.get("slice", "all"),
        figure("baseline"),
        figure("candidate"),
    ]
    cells += [delta, figure("limit"), str(check.get("n") or "-"), str(check.get("verdict", ""))]
    return f"| {' | '.join(cells)} |"


def _latency(timings: list[Timing]) -> str:
    found = summarize(timings)[timings[0].arm]
    tokens = sum(timing.prompt_tokens for timing in timings) // len(timings)
    figures = ", ".join(f"{name} {figure(found[name])}" for name in METRICS)
    sizes = f"{tokens} tokens in and {timings[0].output_tokens} out"
    return f"One request alone, {sizes}, p50 / p95 / p99: {figures}."


def _quantization(folder: Path, manifest: Manifest) -> str:
    facts = manifest.quantization or {}
    scheme = "symmetric" if facts.get("symmetric") else "asymmetric"
    text = (
        f"{facts.get('method', '').upper()}, {facts.get('bits')} bits, groups of {facts.get('group_size')}, "
        f"{scheme}: "
        f"{', '.join(facts.get('components', []))}."
    )
    if kept := facts.get("eight_bit_layers"):
        text += f" In 8 bits: decoder layers {', '.join(map(str, kept))}, counted from 0."
    receipt = _read(folder, "calibration.json")
    if facts.get("calibration"):
        text += f" Calibration set: sha256 `{facts['calibration']}`"
        seen = [f"{receipt[name]:,} {name}" for name in ("samples", "tokens", "images") if name in receipt]
        text += f" ({', '.join(seen)})." if seen else "."
    return text


def _runtimes(manifest: Manifest) -> str:
    checkpoint, runtime = _checkpoint(manifest), _runtime(manifest)
    target = (manifest.engine or {}).get("target")
    rows = {
        "`python -m serve arm`": "yes",
        "transformers, vLLM": "yes" if checkpoint else "no: take the checkpoint variant",
        "onnxruntime": "yes" if runtime == "onnxruntime" else "no: take an `-onnx` variant",
        runtime if target else "TensorRT": f"{target} only" if target else "no: take a `trt-` variant",
    }
    return "| runtime | runs this |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in rows.items())


def _usage(manifest: Manifest) -> str:
    blocks = [
        "In a checkout of the project, with `requirements/serve.txt` installed:",
        "```sh\npython -m serve arm .        # OpenAI's API\n"
        "python -m engines run . --prompt 'What is this?' --image FILE\n```",
    ]
    if _checkpoint(manifest):
        blocks += [
            "With transformers:",
            "```python\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n"
            'model = AutoModelForImageTextToText.from_pretrained(".")\n'
            'processor = AutoProcessor.from_pretrained(".")\n```',
            "With vLLM:",
            "```sh\nvllm serve .\n```",
        ]
    elif _runtime(manifest) == "onnxruntime":
        blocks += [
            "With onnxruntime alone: `vision.onnx` and `decoder.onnx` describe what goes in and out.",
            '```python\nimport onnxruntime\nonnxruntime.InferenceSession("decoder.onnx").get_inputs()\n```',
        ]
    else:
        runtime = RTX if _runtime(manifest) == RTX.name else TENSORRT
        blocks += [
            f"With {runtime.name} {runtime.version} alone, on the GPU that `engine.json` names; an engine "
            "tells what goes in and out:",
            f"```python\nimport {runtime.module} as trt\n"
            "runtime = trt.Runtime(trt.Logger())\n"
            'engine = runtime.deserialize_cuda_engine(open("decoder.engine", "rb").read())\n```',
        ]
    return "\n\n".join(blocks)


def _licence(manifest: Manifest) -> str:
    licence, repo = manifest.source.get("license"), manifest.source.get("repo", "the checkpoint")
    if not licence:
        return f"`{repo}` declares no licence: ask its owner before you pass this on."
    return f"{licence}, carried over from `{repo}`."


def _checkpoint(manifest: Manifest) -> bool:
    return any(name.endswith(".safetensors") for name in manifest.files)


def _runtime(manifest: Manifest) -> str:
    return str((manifest.engine or {}).get("runtime", "transformers"))


def _read(folder: Path, name: str) -> Json:
    path = folder / "evidence" / name
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}
