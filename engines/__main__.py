"""`python -m engines`: export a checkpoint to ONNX or TensorRT, run a checkpoint or an artifact."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from engines.arguments import describe, exit_code, parse
from engines.errors import UserError
from engines.units import human_size


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 error (2, usage, is argparse's)."""
    arguments = parse(parser(), argv)
    commands = {"export": _export, "tensorrt": _tensorrt, "run": _run}
    return exit_code(lambda: commands[arguments.command](arguments))


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    top = argparse.ArgumentParser(
        prog="python -m engines",
        description="Export a checkpoint to ONNX or TensorRT; run a checkpoint or an artifact.",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="write a checkpoint as ONNX graphs for onnxruntime")
    export.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="folder in the Hugging Face layout"
    )
    export.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write, new or empty"
    )
    export.add_argument(
        "--accuracy-level",
        type=int,
        choices=(0, 4),
        default=4,
        help="INT4 layers multiply with activations in fp32 (0) or int8 (4, faster; default)",
    )
    export.add_argument(
        "--standard",
        action="store_true",
        help="ONNX's operators in fp16, for GPUs and other runtimes, in place of onnxruntime's for CPUs",
    )

    tensorrt = commands.add_parser(
        "tensorrt", help="build a checkpoint's TensorRT engines; most need no GPU for that"
    )
    tensorrt.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="folder in the Hugging Face layout, 16-bit or INT4",
    )
    tensorrt.add_argument(
        "--target", required=True, metavar="SM", help="compute capability of the GPU, for example sm89"
    )
    tensorrt.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="folder to write, new or empty"
    )
    tensorrt.add_argument(
        "--precision",
        choices=("fp8", "nvfp4"),
        help="round a 16-bit checkpoint's decoder to 8- or 4-bit floats: sm89 and newer, sm120",
    )
    tensorrt.add_argument(
        "--context", type=int, default=4096, metavar="N", help="most tokens of a sequence; default 4096"
    )
    tensorrt.add_argument(
        "--batch", type=int, default=1, metavar="N", help="most sequences together; default 1"
    )

    run = commands.add_parser("run", help="answer one prompt with an artifact or a checkpoint")
    run.add_argument(
        "artifact",
        type=Path,
        metavar="ARTIFACT",
        help="folder of an ONNX artifact, or of a checkpoint (run by transformers)",
    )
    run.add_argument("--prompt", required=True, metavar="TEXT", help="the question")
    run.add_argument(
        "--image", action="append", default=[], metavar="FILE", help="picture to show; may be repeated"
    )
    run.add_argument(
        "--video", action="append", default=[], metavar="FILE", help="video to show; may be repeated"
    )
    run.add_argument("--max-tokens", type=int, default=256, metavar="N", help="longest answer; default 256")
    run.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="0, the default, takes the likeliest token",
    )
    run.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that make up this probability; default 1, all",
    )
    run.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens; default 0, all"
    )
    run.add_argument(
        "--seed", type=int, default=0, metavar="N", help="equal seeds give equal text; default 0"
    )
    run.add_argument("--threads", type=int, metavar="N", help="CPU threads; by default one for each core")
    run.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    describe(commands)
    return top


def _export(arguments: argparse.Namespace) -> None:
    from engines.checkpoint import Checkpoint
    from engines.export import export, export_standard
    from engines.self_test import record

    out = _new_folder(arguments.out)
    checkpoint = Checkpoint.open(arguments.checkpoint)
    if arguments.standard:
        export_standard(checkpoint, out)
    else:
        export(checkpoint, out, accuracy_level=arguments.accuracy_level)
        record(out)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"{out}: {human_size(size)}, ONNX graphs and what they need to run")


def _tensorrt(arguments: argparse.Namespace) -> None:
    from engines.checkpoint import Checkpoint
    from engines.device import find_gpu
    from engines.export import export_standard
    from engines.tensorrt.engines import NARROW, Limits, compile_artifact
    from engines.tensorrt.targets import FP16, INT4, find_target

    out, limits = _new_folder(arguments.out), Limits(context=arguments.context, batch=arguments.batch)
    checkpoint = Checkpoint.open(arguments.checkpoint)
    weights = arguments.precision or (INT4 if checkpoint.quantization else FP16)
    find_target(arguments.target, weights, find_gpu())  # before minutes of work
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        network, engines = Path(scratch) / "network", Path(scratch) / "engines"
        export_standard(checkpoint, network, weights=arguments.precision)
        plans = compile_artifact(network, engines, arguments.target, limits)
        engines.rename(out)
    for name, plan in plans.items():
        size = (out / name).with_suffix(".engine").stat().st_size
        products = plan.products(NARROW[weights][1]) if weights in NARROW else 0
        print(
            f"{name}: {human_size(size)}, {len(plan.layers)} kernels, {plan.attention_kernels} of them "
            f"attention, {products} products with {weights} weights"
        )


def _new_folder(out: Path) -> Path:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists and is not an empty folder: name another, or remove it")
    return out


def _run(arguments: argparse.Namespace) -> None:
    from engines.generate import Sampling, generate
    from engines.processor import Processor
    from engines.session import open_session

    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.top_k, seed=arguments.seed)
    session = open_session(arguments.artifact, threads=arguments.threads)
    processor = Processor.load(arguments.artifact)
    content = [{"type": kind, kind: file} for kind in ("image", "video") for file in getattr(arguments, kind)]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": arguments.prompt}]}]
    completion = generate(
        session,
        processor,
        processor(messages),
        max_tokens=arguments.max_tokens,
        sampling=sampling,
        on_text=(lambda text: None) if arguments.json else _show,
    )
    if arguments.json:
        print(
            json.dumps({**asdict(completion), "peak_memory_bytes": _peak_memory_bytes()}, ensure_ascii=False)
        )
    else:
        print()


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _peak_memory_bytes() -> int:
    """The most memory this process has held."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts kilobytes


if __name__ == "__main__":
    sys.exit(main())
