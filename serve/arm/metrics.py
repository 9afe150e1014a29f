"""What an arm counts and times, for Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from serve.arm.device import Thermals

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Each arm has its own registry, so that several can live in one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        seconds = partial(Histogram, registry=self.registry, buckets=SECONDS)
        sizes = partial(Histogram, registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64))
        self.requests = counter("arm_requests", "Requests by route and status.", ["route", "status"])
        self.running = gauge("arm_running_sequences", "Sequences in a slot.")
        self.waiting = gauge("arm_waiting_sequences", "Sequences without a slot.")
        self.bodies = gauge("arm_body_bytes", "Of requests that are being read or answered.")
        self.queue = seconds("arm_queue_seconds", "Arrival to a slot.")
        self.ttft = seconds("arm_ttft_seconds", "Arrival to the first token.")
        self.itl = seconds("arm_itl_seconds", "Gap between tokens.")
        self.batch = sizes("arm_batch_size", "Sequences in a decoding step.")
        self.prompt_tokens = counter("arm_prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = counter("arm_cached_tokens", "Of these, not computed again.")
        self.output_tokens = counter("arm_output_tokens", "Tokens generated.")
        self.media = counter("arm_media", "Pictures and videos of prompts.")
        self.media_remembered = counter("arm_media_remembered", "Of these, not encoded again.")
        self.vision = seconds("arm_vision_seconds", "Encoding a request's media.")
        ProcessCollector(registry=self.registry)
        self.registry.register(Thermals())

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
