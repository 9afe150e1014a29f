"""Every parser that reads what others wrote, as a function of bytes that raises UserError or nothing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from bench.history.runs import read_history
from bench.scoring import METRICS, score
from bench.tasks import read_items
from build.recipe import load_recipe
from build.release import modelpack
from build.release.reference import Reference
from engines import self_test
from engines.artifact import Manifest, hash_file
from engines.chat import ChatTemplate, split_media
from engines.checkpoint import INDEX, SINGLE, Checkpoint
from engines.config import ModelConfig, read_json
from engines.constraint import Grammar
from engines.engine_files import ENGINE_FACTS, EngineFacts
from engines.errors import UserError
from engines.images import load_image
from engines.processor import Processor
from engines.quantized import Quantization
from engines.safetensors import read_safetensors
from engines.videos import VideoConfig, prepare_video
from quantize.calibration import read_samples
from serve.arm.errors import ApiError
from serve.arm.model import sampling_defaults
from serve.arm.output import Output
from serve.arm.prompt import plain
from serve.arm.rules import constraint, sampling
from serve.arm.schema import ChatRequest
from serve.report.lines import read_logs
from serve.rollout.gate import NAME, refusal
from serve.router.reading import parse_policy
from serve.router.versions import read_texts
from tests.fuzz.wires import administered, answered, asked
from tests.test_policy import SMALLEST

CHECKPOINT = Path(__file__).parents[2] / "bench" / "micro" / "checkpoint"
MESSAGES = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]


@cache
def scratch() -> Path:
    """One folder for the whole run: nothing is left in it that the next input would not replace."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def written(name: str, content: bytes) -> Path:
    path = scratch() / name
    path.write_bytes(content)
    return path


def beside_the_checkpoint(name: str, content: bytes) -> Path:
    """A copy of the embedded checkpoint, linked, with one file replaced."""
    folder = scratch() / f"with-{name}"
    if not folder.is_dir():
        folder.mkdir()
        for file in CHECKPOINT.iterdir():
            (folder / file.name).symlink_to(file)
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_bytes(content)
    return folder


def text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def index(content: bytes) -> None:
    folder = beside_the_checkpoint(INDEX, content)
    (folder / SINGLE).unlink(missing_ok=True)
    Checkpoint.open(folder)


def template(content: bytes) -> None:
    ChatTemplate.load(beside_the_checkpoint("chat_template.jinja", content)).render(MESSAGES)


def messages(content: bytes) -> None:
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        return  # whoever calls has parsed it
    split_media(found)


def pulled(content: bytes) -> None:
    """What a registry sends as a manifest, from where it is known to be a JSON object."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return
    if isinstance(found, dict):
        modelpack.files(found, "oci://registry.example/model")


def answer(content: bytes) -> None:
    """A model's own words, which are anything at all: the scorers and the arm's reader of calls."""
    said = text(content)
    for metric, right in RIGHT.items():
        assert 0 <= score(metric, said, right) <= 1
    for tools in (False, True):
        output = Output(thinking=True, tools=tools)
        for start in range(0, len(said), 7):
            output.feed(said[start : start + 7])
        output.close()


def audit(content: bytes) -> None:
    (scratch() / "policies").mkdir(exist_ok=True)
    written("policies/000001.yaml", b"")
    written("audit.jsonl", content)
    read_texts(scratch())


def chat_request(content: bytes) -> None:
    """Up to where the model would begin; pictures are an arm's to read."""
    try:
        request = ChatRequest.model_validate_json(content)
        messages = [plain(message, repeat(PICTURE), repeat(CHECKPOINT)) for message in request.messages]
        loaded().template.render(messages, tools=[tool.model_dump() for tool in request.offered_tools])
        assert request.characters >= 0
        sampling(request, {"temperature": 1.0})
        if held := constraint(SimpleNamespace(grammar=grammar()), request):  # type: ignore[arg-type]
            held.apply(np.zeros(512, np.float32))
    except (ApiError, ValidationError):
        pass


@cache
def loaded() -> Processor:
    return Processor.load(CHECKPOINT)


@cache
def grammar() -> Grammar:
    return Grammar(loaded().tokenizer, loaded().config)


def gate(content: bytes) -> None:
    (scratch() / "evidence").mkdir(exist_ok=True)
    file = written(NAME, content)
    JUDGED.model_copy(update={"evidence": {NAME: hash_file(file)}}).write(scratch())
    refusal(parse_policy(f"{SMALLEST}rollout: {{arm: int4, gate: {json.dumps(str(file))}}}\n"))


def quantization(content: bytes) -> None:
    Quantization.parse(read_json(written("config.json", content)).get("quantization_config"))


def video(content: bytes) -> None:
    prepare_video(written("video.mp4", content), None, VIDEO)


VIDEO = VideoConfig(patch_size=16, temporal_patch_size=2, merge_size=2)
PICTURE = Image.new("RGB", (8, 8))
JUDGED = Manifest(name="m", variant="v", stage="export", stage_version="1", key="k", files={})
# What is right by each metric, in the form that its items have.
OBJECT, LIST = '{"name": "a", "arguments": {"b": [1, "c"]}}', '["one", "two"]'
RIGHT = dict.fromkeys(METRICS, "12") | {
    "box": "[10, 20, 30, 40]",
    **dict.fromkeys(("fields", "strict_json", "tool_call"), OBJECT),
    **dict.fromkeys(("recall", "anls", "vqa", "contains", "contains_formula"), LIST),
}

PARSERS: dict[str, Callable[[bytes], object]] = {
    "safetensors": lambda content: read_safetensors(written("x.safetensors", content)),
    "index": index,
    "config": lambda content: ModelConfig.load(beside_the_checkpoint("config.json", content)),
    "quantization": quantization,
    "generation": lambda content: sampling_defaults(beside_the_checkpoint("generation_config.json", content)),
    "preprocessor": lambda content: Processor.load(
        beside_the_checkpoint("preprocessor_config.json", content)
    ),
    "tokenizer": lambda content: Processor.load(beside_the_checkpoint("tokenizer.json", content)),
    "template": template,
    "messages": messages,
    "manifest": lambda content: Manifest.read(written("manifest.json", content).parent),
    "engines": lambda content: EngineFacts.read(written(ENGINE_FACTS, content).parent),
    "self-test": lambda content: self_test.Reference.read(written(self_test.FILE, content).parent),
    "modelpack": pulled,
    "reference": lambda content: Reference.parse(text(content)),
    "policy": lambda content: parse_policy(text(content)),
    "audit": audit,
    "recipe": lambda content: load_recipe(str(written("recipe.yaml", content))),
    "items": lambda content: read_items(written("items.jsonl", content)),
    "calibration": lambda content: read_samples(written("samples.jsonl", content)),
    "image": lambda content: load_image(written("picture", content)),
    "video": video,
    "answer": answer,
    "request": chat_request,
    "traffic": asked,
    "arm": answered,
    "admin": administered,
    "gate": gate,
    "log": lambda content: read_logs([written("log", content)]),
    "history": lambda content: read_history([written("history.jsonl", content)]),
}


def attempt(name: str, content: bytes) -> None:
    """Parse it or refuse it: anything but a UserError of one line breaks out."""
    try:
        PARSERS[name](content)
    except UserError as error:
        if "\n" in str(error):
            raise ValueError("a message of several lines") from error
