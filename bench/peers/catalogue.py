"""The peers: what each is installed from, what its model is made of, and the script that runs it."""

from __future__ import annotations

from dataclasses import dataclass

TORCH = "torch==2.13.0"  # a range would admit builds that bring gigabytes of CUDA
TRANSFORMERS = "transformers==4.57.6"  # what optimum-intel asks for


@dataclass(frozen=True)
class Environment:
    """A virtual environment. `source` is a requirement to build here, for this CPU, keeping its source."""

    name: str
    requirements: tuple[str, ...]
    source: str | None = None


@dataclass(frozen=True)
class Conversion:
    """A folder that a script of bench/peers/converters makes. A source of None is the checkpoint itself."""

    name: str
    script: str
    environment: Environment | None = None  # None: our own interpreter
    sources: tuple[Conversion | None, ...] = (None,)
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peer:
    """One line of the table: a script of bench/peers/workers on a model, None being the checkpoint itself."""

    name: str
    worker: str
    environment: Environment | None = None
    model: Conversion | None = None
    rounds: int | None = None  # at most, for a slow one


LLAMA_CPP = Environment(
    "llama-cpp",
    (TORCH, TRANSFORMERS, "gguf==0.19.0", "sentencepiece==0.2.3", "pillow>=12"),
    "llama-cpp-python==0.3.36",
)
IK_LLAMA_CPP = Environment("ik-llama-cpp", ("ik-llama-cpp-python==0.1.5",))  # built for AVX2
OPENVINO = Environment(
    "openvino", (TORCH, TRANSFORMERS, "openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0")
)
GENAI = Environment(
    "onnxruntime-genai",
    (
        TORCH,
        "transformers==5.23.0",
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.32.0",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
        "onnxscript==0.7.2",
        "tqdm",
    ),
)

TEXT = Conversion("text", "text")
GGUF = Conversion("gguf", "gguf", LLAMA_CPP)


def _quantized(name: str, environment: Environment, kind: str) -> Conversion:
    return Conversion(name, "quantize_gguf", environment, (GGUF,), (kind,))


PEERS = (
    Peer("llama.cpp Q4_0", "llama_cpp", LLAMA_CPP, _quantized("llama-cpp-q4_0", LLAMA_CPP, "Q4_0")),
    Peer("llama.cpp Q4_K_M", "llama_cpp", LLAMA_CPP, _quantized("llama-cpp-q4_k_m", LLAMA_CPP, "Q4_K_M")),
    Peer("ik_llama.cpp IQ4_XS", "llama_cpp", IK_LLAMA_CPP, _quantized("ik-iq4_xs", IK_LLAMA_CPP, "IQ4_XS")),
    Peer(
        "OpenVINO GenAI INT4",
        "openvino",
        OPENVINO,
        Conversion("openvino", "openvino", OPENVINO, (TEXT, None)),
    ),
    Peer(
        "onnxruntime-genai INT4",
        "onnxruntime_genai",
        GENAI,
        Conversion("onnxruntime-genai", "onnxruntime_genai", GENAI, (TEXT,)),
    ),
    Peer("transformers", "transformers", rounds=1),
)
