"""onnxruntime-genai: its own decoder graph and generator, greedy."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from bench.peers.workers.protocol import About, Tokens, serve, size, stepwise


class GenaiModel:
    """A folder with genai_config.json."""

    def __init__(self, directory: Path, threads: int) -> None:
        config = og.Config(str(directory))
        config.overlay(
            f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}'
        )
        self.model = og.Model(config)
        weights = size(directory)
        self.about = About(f"onnxruntime-genai {version('onnxruntime-genai')}", "f32", 4, weights, weights, 0)

    def generate(self, prompts: list[Tokens], count: int) -> list[float]:
        """See Model.generate."""
        options = og.GeneratorParams(self.model)
        options.set_search_options(
            do_sample=False,
            batch_size=len(prompts),
            min_length=len(prompts[0]) + count,
            max_length=len(prompts[0]) + count,
        )
        generator = og.Generator(self.model, options)

        def prefill(prompts: list[Tokens]) -> Any:
            generator.append_tokens(np.array(prompts, np.int32))
            generator.generate_next_token()

        return stepwise(prefill, lambda _: generator.generate_next_token(), prompts, count)

    def vision(self, image: Path) -> float:
        """See Model.vision."""
        raise NotImplementedError("onnxruntime-genai has no vision graph for this model")


if __name__ == "__main__":
    serve(GenaiModel)
