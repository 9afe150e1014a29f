"""Our own engine behind the protocol: an ONNX artifact by onnxruntime."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from bench.peers.workers.protocol import About, Tokens, serve, size, stepwise
from engines.onnx_files import DECODER, EMBEDDING, VISION
from engines.onnx_runtime import CPU, CUDA
from engines.onnx_session import OnnxSession
from engines.processor import Inputs, Processor

PROVIDERS = {"cpu": CPU, "cuda": CUDA}


class OnnxModel:
    """An artifact's session, timed; engines bring their own provider."""

    def __init__(self, directory: Path, threads: int, device: str = "cpu") -> None:
        self.directory = directory
        self.session = OnnxSession(directory, threads=threads, provider=PROVIDERS[device])
        decoder, vision = (size(*directory.glob(f"{Path(name).stem}*")) for name in (DECODER, VISION))
        runtime = self.session.engines
        engine = f"{runtime.runtime} {runtime.version}, " if runtime else ""
        engine += f"onnxruntime {onnxruntime.__version__}"
        if (
            self.session.config.tie_word_embeddings
            and b"MatMulNBits" not in (directory / DECODER).read_bytes()
        ):
            decoder += size(directory / EMBEDDING)  # the head; one in 4 bits is the decoder's own
        kv = np.dtype(self.session.cache_dtype)
        self.about = About(engine, kv.name, kv.itemsize, decoder, size(directory) - vision, vision)

    def generate(self, prompts: list[Tokens], count: int) -> list[float]:
        """See Model.generate."""
        cache: Any = None

        def prefill(prompts: list[Tokens]) -> Any:
            nonlocal cache
            inputs = [Inputs.text(prompt) for prompt in prompts]
            logits, cache = self.session.prefill(inputs, capacity=len(prompts[0]) + count)
            return logits[:, -1].argmax(axis=-1)

        def step(tokens: Any) -> Any:
            return self.session.decode(tokens, cache).argmax(axis=-1)

        return stepwise(prefill, step, prompts, count)

    def vision(self, image: Path) -> float:
        """See Model.vision. The picture is taken apart before the clock starts."""
        content = [{"type": "image", "image": str(image)}]
        inputs = Processor.load(self.directory)([{"role": "user", "content": content}])
        start = time.perf_counter()
        self.session.vision(inputs)
        return time.perf_counter() - start


if __name__ == "__main__":
    serve(OnnxModel)
