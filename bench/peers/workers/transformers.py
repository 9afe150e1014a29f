"""transformers on the checkpoint itself: 16 bits where the device multiplies in them, else fp32."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.peers.workers.protocol import About, Tokens, serve, stepwise
from engines.checkpoint import Checkpoint
from engines.processor import Processor
from engines.reference import compute_dtype


class TransformersModel:
    """The whole model as from_pretrained gives it."""

    def __init__(self, directory: Path, threads: int, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        stored = Checkpoint.open(directory)
        self.directory, self.device, dtype = directory, device, compute_dtype(stored, device)
        self.model = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
            directory, dtype=dtype, local_files_only=True, attn_implementation="sdpa"
        )
        self.model = self.model.eval().to(device)
        # On a GPU a step is recorded once and replayed, which needs a cache that does not move.
        self.step = self.model if device == "cpu" else torch.compile(self.model, mode="reduce-overhead")
        read = sum(weight.nbytes for weight in self.model.model.language_model.parameters())
        sizes = {name: stored.tensor(name).nbytes for name in stored.names()}
        vision = sum(size for name, size in sizes.items() if ".visual." in name)
        kv = ("f32", 4) if dtype == "float32" else (dtype, 2)
        engine = f"transformers {transformers.__version__} {dtype}"
        self.about = About(engine, *kv, read, sum(sizes.values()) - vision, vision)

    def generate(self, prompts: list[Tokens], count: int) -> list[float]:
        """See Model.generate."""
        past: Any = None
        if self.device != "cpu":
            length = len(prompts[0]) + count
            past = transformers.StaticCache(config=self.model.config.text_config, max_cache_len=length)

        @torch.inference_mode()
        def append(model: Any, ids: torch.Tensor) -> torch.Tensor:
            nonlocal past
            ids = ids.to(self.device)
            output = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            past = output.past_key_values
            tokens: torch.Tensor = output.logits[:, -1:].argmax(dim=-1).cpu()  # waits for the device
            return tokens

        def prefill(prompts: list[Tokens]) -> torch.Tensor:
            return append(self.model, torch.tensor(prompts))

        return stepwise(prefill, lambda ids: append(self.step, ids), prompts, count)

    def vision(self, image: Path) -> float:
        """See Model.vision. The picture is taken apart before the clock starts."""
        content = [{"type": "image", "image": str(image)}]
        media = Processor.load(self.directory)([{"role": "user", "content": content}]).media[0]
        pixels, grid = torch.from_numpy(media.pixels), torch.tensor([media.grid])
        start = time.perf_counter()
        with torch.inference_mode():
            features = self.model.model.get_image_features(pixels.to(self.device), grid.to(self.device))
            features.pooler_output[0].cpu()  # waits for the device
        return time.perf_counter() - start


if __name__ == "__main__":
    serve(TransformersModel)
