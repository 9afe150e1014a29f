"""OpenVINO GenAI: the text part by LLMPipeline on token ids, the vision tower by VLMPipeline."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from bench.peers.workers.protocol import About, Tokens, serve, size


class OpenVinoModel:
    """A folder with text/ (decoder with its embedding) and vlm/ (the whole model)."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.threads, self.vlm = threads, directory / "vlm"
        self.text: Any = openvino_genai.LLMPipeline(
            str(directory / "text"), "CPU", INFERENCE_NUM_THREADS=threads
        )
        weights = size(directory / "text" / "openvino_model.bin")
        self.about = About(
            f"openvino-genai {version('openvino-genai')}",
            "u8",
            1 + 4 / 128,
            weights,
            weights,
            size(*self.vlm.glob("openvino_vision*.bin")),
        )

    def generate(self, prompts: list[Tokens], count: int) -> list[float]:
        """See Model.generate; the times are the pipeline's own."""
        options = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)
        ids = np.array(prompts, np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        raw = self.text.generate(inputs, options).perf_metrics.raw_metrics
        return [seconds / 1e6 for seconds in (raw.m_times_to_first_token[0], *raw.m_durations)]

    def vision(self, image: Path) -> float:
        """See Model.vision."""
        if not self.vlm.is_dir():
            raise NotImplementedError("the whole model was not exported")
        from PIL import Image

        self.text = None
        pipeline = openvino_genai.VLMPipeline(str(self.vlm), "CPU", INFERENCE_NUM_THREADS=self.threads)
        with Image.open(image) as opened:
            picture = openvino.Tensor(np.asarray(opened.convert("RGB"))[None])
        answer = pipeline.generate("?", images=[picture], max_new_tokens=1, ignore_eos=True)
        return float(answer.perf_metrics.vlm_raw_metrics.vision_encoding_durations[0]) / 1e6


if __name__ == "__main__":
    serve(OpenVinoModel)
