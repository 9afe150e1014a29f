"""Our own engines behind the protocol: an ONNX artifact by onnxruntime, a checkpoint by transformers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.workers.protocol import About, Tokens, serve, size, stepwise
from engines.onnx_files import DECODER, VISION
from engines.processor import Inputs, Processor
from engines.session import open_session


class SessionModel:
    """A Session, timed."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.directory = directory
        self.session = open_session(directory, threads=threads)
        self.about = _about(directory, self.session)

    def generate(self, prompts: list[Tokens], count: int) -> list[float]:
        """See Model.generate."""
        cache: Any = None

        def prefill(prompts: list[Tokens]) -> Any:
            nonlocal cache
            inputs = [_text(prompt) for prompt in prompts]
            logits, cache = self.session.prefill(inputs, capacity=len(prompts[0]) + count)
            return logits[:, -1].argmax(axis=-1)

        return stepwise(
            prefill, lambda tokens: self.session.decode(tokens, cache).argmax(axis=-1), prompts, count
        )

    def vision(self, image: Path) -> float:
        """See Model.vision. The picture is taken apart before the clock starts."""
        content = [{"type": "image", "image": str(image)}]
        inputs = Processor.load(self.directory)([{"role": "user", "content": content}])
        encode = self._encoder(inputs)
        start = time.perf_counter()
        encode()
        return time.perf_counter() - start

    def _encoder(self, inputs: Inputs) -> Any:
        if (self.directory / VISION).exists():
            from engines.onnx_runtime import CPU
            from engines.onnx_vision import VisionTower

            tower = VisionTower(self.directory / VISION, self.session.config, None, (CPU,))
            return lambda: tower(inputs)
        import torch

        pixels, grid = torch.from_numpy(inputs.media[0].pixels), torch.tensor([inputs.media[0].grid])
        model = self.session.model.model  # type: ignore[attr-defined]

        def encode() -> None:
            with torch.inference_mode():
                model.get_image_features(pixels, grid)

        return encode


def _text(tokens: Tokens) -> Inputs:
    positions = np.tile(np.arange(len(tokens), dtype=np.int64), (3, 1))
    return Inputs(np.array(tokens, np.int64), positions, (), len(tokens))


def _about(directory: Path, session: Any) -> About:
    if (directory / DECODER).exists():
        import onnxruntime

        decoder, vision = size(*directory.glob("decoder*")), size(*directory.glob("vision*"))
        return About(
            f"onnxruntime {onnxruntime.__version__}", "f32", 4, decoder, size(directory) - vision, vision
        )
    import transformers

    parameters = list(session.model.named_parameters())
    sizes = {name: value.numel() * value.element_size() for name, value in parameters}
    vision = sum(bytes_ for name, bytes_ in sizes.items() if ".visual." in name)
    text, dtype = sum(sizes.values()) - vision, str(parameters[0][1].dtype).removeprefix("torch.")
    short, width = ("f32", 4) if dtype == "float32" else (dtype, 2)
    return About(f"transformers {transformers.__version__} {dtype}", short, width, text, text, vision)


if __name__ == "__main__":
    serve(SessionModel)
