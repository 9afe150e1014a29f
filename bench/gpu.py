"""`python -m bench gpu`: one checkpoint's arms on this machine's NVIDIA GPU, beside the 16-bit baseline.

Arms are measured as peers are (bench.peers.measure): each in a process of its own, in turn, round by round.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.peers.comparison import WORKERS, Comparison
from bench.peers.machine import Speed, machine
from bench.peers.measure import CONTEXT, IMAGE, TOGETHER, TOKENS, Arm, Results, measure
from bench.peers.table import Figure, Row, document, range_of, rows
from engines.checkpoint import Checkpoint
from engines.config import ModelConfig
from engines.device import Gpu, find_gpu
from engines.errors import UserError
from engines.export import export_standard

COLUMNS = (
    "arm",
    "decode, tokens/s",
    "× baseline",
    "% of bandwidth",
    f"prefill {CONTEXT}, tokens/s",
    "× baseline",
    "% of fp16 peak",
    f"{TOGETHER} at once, tokens/s",
    f"vision {IMAGE}×{IMAGE}, ms",
    "load to first token, s",
    "GPU memory, GB",
    "power, W",
    "°C at most",
    "% busy",
)


def compare_on_gpu(
    checkpoints: Sequence[Path],
    *,
    folder: Path,
    rounds: int,
    tell: Callable[[str], None],
    device: str = "cuda",
) -> Comparison:
    """The first checkpoint by transformers, then every one by onnxruntime and by TensorRT.

    folder: keeps graphs and engines. An arm that cannot be made or run is left with its reason; UserError if
    that is the baseline, or there is no GPU.
    """
    gpu = find_gpu()
    if gpu is None:
        raise UserError("found no NVIDIA GPU, or no driver or nvidia-ml-py to see it; expected one")
    baseline = checkpoints[0]
    arms = [_arm("transformers", "transformers", baseline, device)]
    problems: dict[str, str] = {}
    for checkpoint in checkpoints:
        name = checkpoint.resolve().name
        graphs = folder / f"{name}-standard"
        tell(f"{name}: exporting")
        _make(graphs, partial(export_standard, Checkpoint.open(checkpoint)))
        arms.append(_arm(f"{name}, onnxruntime", "onnx", graphs, device))
        try:
            arms.append(_arm(f"{name}, TensorRT", "onnx", _engines(graphs, gpu, tell), device))
        except UserError as error:
            problems[f"{name}, TensorRT"] = str(error)
            tell(f"{name}, TensorRT: {error}")
    config = ModelConfig.load(baseline)
    results = measure(
        arms,
        vocabulary=config.text.vocab_size,
        rounds=rounds,
        threads=1,
        tell=tell,
        speed=lambda threads: device_speed(device),
    )
    if arms[0].name in results.problems:
        raise UserError(f"{arms[0].name}: {results.problems[arms[0].name]}")
    results.problems = problems | results.problems
    found = rows(results, arms, config.text)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    conditions = {"date": date, "checkpoint": baseline.resolve().name, "rounds": rounds, "gpu": asdict(gpu)}
    page = markdown(found, results, gpu, conditions)
    return Comparison(found, results, page, document(found, results, machine(), conditions), "gpu")


def device_speed(device: str, size: int = 1 << 30, side: int = 8192, tries: int = 5) -> Speed:
    """Best of a few tries on a GPU: `size` bytes read, and fp16 products of `side` x `side` matrices."""
    import torch

    def best(work: Callable[[], torch.Tensor]) -> float:
        times = []
        for _ in range(tries):
            start = time.perf_counter()
            work().flatten()[0].item()  # waits for the device
            times.append(time.perf_counter() - start)
        return min(times)

    data = torch.zeros(size // 4, dtype=torch.int32, device=device)
    matrix = torch.ones(side, side, dtype=torch.float16, device=device)
    return Speed(size / best(data.max), 2 * side**3 / best(lambda: matrix @ matrix))


def cells(row: Row, results: Results) -> list[str]:
    """One line of the table as people read it."""
    seen = [visit.gpu for visit in results.visits[row.name] if visit.gpu]
    usage = ["-"] * 4
    if seen:
        usage = [
            f"{max(gpu.memory_bytes for gpu in seen) / 1e9:.2f}",
            range_of(Figure.of([gpu.power_w for gpu in seen]), "{:.0f}"),
            f"{max(gpu.temperature_c for gpu in seen)}",
            range_of(Figure.of([gpu.utilization_percent for gpu in seen]), "{:.0f}"),
        ]
    return [
        row.name,
        range_of(row.decode, "{:.1f}"),
        range_of(row.decode_ratio, "{:.2f}"),
        f"{100 * row.bandwidth:.0f}",
        range_of(row.prefill, "{:.0f}"),
        range_of(row.prefill_ratio, "{:.2f}"),
        f"{100 * row.peak:.0f}",
        range_of(row.together, "{:.1f}"),
        range_of(row.vision, "{:.1f}", 1000),
        range_of(row.load, "{:.1f}"),
        *usage,
    ]


def markdown(found: Sequence[Row], results: Results, gpu: Gpu, conditions: dict[str, Any]) -> str:
    """The page for docs/results."""
    read, fp16 = (max(getattr(speed, name) for speed in results.speeds) for name in ("read", "fp32"))
    header = (
        f"{conditions['date']}, commit {machine().commit}, {conditions['rounds']} rounds, checkpoint "
        f"`{conditions['checkpoint']}`, by `make gpu`."
    )
    lines = [
        f"# On one {gpu.name}",
        "",
        header,
        "",
        f"{gpu.name} ({gpu.architecture}, {gpu.memory / 1e9:.0f} GB), driver {gpu.driver}. It reads "
        f"{read / 1e9:.0f} GB/s and multiplies {fp16 / 1e12:.1f} TFLOP/s in fp16.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cells(row, results)) + " |" for row in found),
        *(
            f"| {name} | not measured: {reason} |" + " |" * (len(COLUMNS) - 2)
            for name, reason in results.problems.items()
        ),
        "",
        f"Median over rounds (lowest–highest). Decode: {TOKENS - 1} tokens after {CONTEXT}, one sequence, "
        "greedy. Bandwidth: of weights, keys and values for each token. Memory, power, temperature and load "
        "as NVML tells them while an arm loads and answers.",
        "",
        "| arm | version |",
        "|---|---|",
        *(f"| {row.name} | {row.engine} |" for row in found),
    ]
    return "\n".join(lines) + "\n"


def _arm(name: str, worker: str, model: Path, device: str) -> Arm:
    return Arm(name, (sys.executable, "-m", f"{WORKERS}.{worker}", str(model.resolve())), device=device)


def _engines(graphs: Path, gpu: Gpu, tell: Callable[[str], None]) -> Path:
    from engines.tensorrt.engines import compile_artifact

    engines = graphs.with_name(f"{graphs.name}-{gpu.architecture}")
    tell(f"{graphs.name}: compiling engines for {gpu.architecture}")
    _make(engines, lambda out: compile_artifact(graphs, out, gpu.architecture))
    return engines


def _make(folder: Path, make: Callable[[Path], object]) -> None:
    """What is there is kept; what is not is there whole or not at all."""
    if folder.is_dir():
        return
    unfinished = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    make(unfinished)
    unfinished.rename(folder)
