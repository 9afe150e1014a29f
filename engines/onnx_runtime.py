"""Opens ONNX graphs in onnxruntime."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from engines.engine_files import RTX, TENSORRT
from engines.errors import UserError

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
NVIDIA = 0x10DE  # PCI vendor

# Where a provider reads its inputs: device type, index and vendor, as onnxruntime's OrtValue takes them.
MEMORY = {
    CPU: ("cpu", 0, -1),
    CUDA: ("cuda", 0, -1),
    TENSORRT.provider: ("cuda", 0, -1),
    RTX.provider: ("gpu", 0, NVIDIA),
}
# How a provider is told to record the kernels of runs and to repeat them (CUDA graphs). Plain TensorRT's has
# one recording only, whose addresses would be another conversation's.
REPLAY = {
    CUDA: "enable_cuda_graph",
    RTX.provider: "enable_cuda_graph",
}


def releasing() -> Any:
    """Options of a run that gives its working memory back: a long prefill's would never be needed again."""
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def recorded_as(number: int) -> Any:
    """Options of a run whose kernels a GPU records under `number` and repeats from the second time on: for
    fixed shapes and addresses. -1: of a run that is not to be recorded.

    The first is made three times over, which is right where a run only writes what it wrote before, as a step
    does to the cache.
    """
    options = ort.RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def check_file(path: Path) -> None:
    """UserError when a file of an artifact is missing."""
    if not path.is_file():
        raise UserError(f"{path} is missing: export the checkpoint again")


def open_model(path: Path, threads: int | None, provider: str = CPU, *, replay: bool = False) -> Any:
    """An onnxruntime.InferenceSession over `path`; UserError when it is missing, broken or incomplete.

    threads: by default one for each core. replay: whether a GPU is to record runs, see recorded_as.
    """
    check_file(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # A thread waits for work by spinning, which bridges the gap between two operators but takes the core from
    # other sessions. 0.1 ms decodes about as fast as the default, and up to twice as fast on busy cores.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "100")
    # Folding the casts of 16-bit weights keeps them in fp32: twice the memory, and seconds of loading. The
    # last level of optimisation, which is about the layout of convolutions, folds them too. The fusion of
    # INT4 weights into products reads those in external data wrongly (1.32).
    folding = ["ConstantFolding", "QDQSelectorActionTransformer"]
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        settings = {REPLAY[provider]: str(int(replay))} if provider in REPLAY else {}
        if provider == RTX.provider:
            options.add_provider_for_devices([_rtx_device()], settings)
            return ort.InferenceSession(str(path), options)
        if provider == CUDA:
            ort.preload_dlls()  # from NVIDIA's packages, which no search path of the system names
        graph = ort.InferenceSession(
            str(path), options, providers=[(provider, settings)], disabled_optimizers=folding
        )
    except UserError:
        raise
    except Exception as error:  # onnxruntime's errors share no narrower base
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} cannot be loaded, export the checkpoint again: {reason}") from None
    # Where a provider finds no GPU or not its libraries, onnxruntime takes the CPU and says nothing.
    if provider not in graph.get_providers():
        raise UserError(
            f"{provider} cannot start: found no GPU, or not the libraries it was built with; see that "
            "nvidia-smi lists a GPU, and install requirements/gpu.txt"
        )
    return graph


def check_provider(provider: str) -> None:
    """UserError when this onnxruntime lacks the execution provider, or nobody has tried it."""
    available = [name for name in ort.get_available_providers() if name in MEMORY]
    if provider not in available:
        raise UserError(f"execution provider {provider}: expected {' or '.join(available)}")


def engine_version(provider: str) -> str:
    """Version of the TensorRT that runs engines in that provider; UserError when it is not installed.

    For RTX onnxruntime's provider bundles it. Plain TensorRT is the installed one, which is loaded here, so
    that the provider finds its libraries in the process.
    """
    if provider == TENSORRT.provider:
        check_provider(provider)
        return str(TENSORRT.load().__version__)
    (library,) = Path(_rtx_plugin().__file__).parent.glob("libtensorrt_rtx.so.*.*")
    return library.name.partition(".so.")[2]


def _rtx_plugin() -> Any:
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError:
        raise UserError(
            "TensorRT engines are run by a provider that is not installed: "
            "pip install onnxruntime-ep-nv-tensorrt-rtx-cu13"
        ) from None
    return plugin


@cache
def _rtx_device() -> Any:
    """The first GPU that the provider finds."""
    try:
        ort.register_execution_provider_library(RTX.provider, _rtx_plugin().get_library_path())
    except UserError:
        raise
    except Exception as error:  # as above
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"TensorRT for RTX cannot start, is the NVIDIA driver installed? {reason}") from None
    devices = [device for device in ort.get_ep_devices() if device.ep_name == RTX.provider]
    if not devices:
        raise UserError("TensorRT for RTX finds no GPU that it supports (RTX 30 and newer)")
    return devices[0]
