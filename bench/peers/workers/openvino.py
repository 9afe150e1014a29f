"""OpenVINO GenAI: text by continuous batching, which its LLMPipeline uses too, vision by VLMPipeline."""

from __future__ import annotations

from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from bench.peers.workers.protocol import About, Tokens, serve, size, stepwise


class OpenVinoModel:
    """A folder with text/ (decoder with its embedding) and vlm/ (the whole model)."""

    def __init__(self, directory: Path, threads: int) -> None:
        self.threads, self.vlm = threads, directory / "vlm"
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = 4096  # a prompt, or the prompts of a batch, in one pass
        options = {"INFERENCE_NUM_THREADS": threads}
        self.text: Any = openvino_genai.ContinuousBatchingPipeline(
            str(directory / "text"), scheduler, "CPU", options
        )
        self.requests = 0
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
        """See Model.generate."""
        options = openvino_genai.GenerationConfig(max_new_tokens=count, ignore_eos=True, do_sample=False)

        handles = []  # a request whose handle is gone is dropped

        def prefill(prompts: list[Tokens]) -> None:
            for prompt in prompts:
                self.requests += 1
                ids = openvino.Tensor(np.array([prompt]))
                handles.append(self.text.add_request(self.requests, ids, options))
            self.text.step()

        times = stepwise(prefill, lambda _: self.text.step(), prompts, count)
        made = [len(handle.read_all()[0].generated_ids) for handle in handles]
        if made != len(prompts) * [count]:
            raise RuntimeError(f"{count} steps made {made} tokens")
        return times

    @cached_property
    def _whole(self) -> Any:
        self.text = None  # makes room: the whole model brings a decoder of its own
        return openvino_genai.VLMPipeline(str(self.vlm), "CPU", INFERENCE_NUM_THREADS=self.threads)

    def vision(self, image: Path) -> float:
        """See Model.vision; the time is the pipeline's own, of all that makes embeddings of picture and text.

        What it calls vision encoding is the patch embedding alone: the transformer runs with the merger.
        """
        if not self.vlm.is_dir():
            raise NotImplementedError("the whole model could not be exported")
        from PIL import Image

        with Image.open(image) as opened:
            picture = openvino.Tensor(np.asarray(opened.convert("RGB"))[None])
        answer = self._whole.generate("?", images=[picture], max_new_tokens=1, ignore_eos=True)
        return float(answer.perf_metrics.vlm_raw_metrics.prepare_embeddings_durations[0]) / 1e6


if __name__ == "__main__":
    serve(OpenVinoModel)
