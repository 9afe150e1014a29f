"""Traces of an ONNX artifact: its graphs cut at every place, so that each is seen and replaced."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper

from bench.traces.places import (
    LOGITS,
    MERGER,
    PARTS,
    ROTARY,
    TOKENS,
    VISION_EMBEDDING,
    Place,
    Trace,
    added,
    decoder_layer,
    deepstack,
    entering,
    vision_block,
)
from bench.traces.rounding import Format
from engines.config import ModelConfig
from engines.engine_files import ENGINE_FACTS
from engines.errors import UserError
from engines.graphs.decoder import MODEL
from engines.graphs.vision import VISUAL
from engines.onnx_files import DECODER, VISION
from engines.onnx_runtime import CPU
from engines.onnx_session import OnnxSession
from engines.onnx_vision import VisionTokens
from engines.processor import Inputs

COS, SIN = "rotary.cos", "rotary.sin"  # of the fused dialect, which computes them


class Graphs:
    """An ONNX artifact whose layers can be seen.

    formats: of its quantised linears, by name; floats: the type that it computes in.
    """

    def __init__(self, directory: Path, *, threads: int | None = None) -> None:
        """UserError when the folder holds compiled engines."""
        if (directory / ENGINE_FACTS).exists():
            raise UserError(
                f"{directory} holds compiled engines, which do not show their layers: expected the graphs "
                "they were compiled from (python -m engines export --standard)"
            )
        self.session = OnnxSession(directory, threads=threads)
        self.floats = self.session.inputs.floats
        config = self.session.config
        models = [onnx.load(str(directory / name), load_external_data=False) for name in (VISION, DECODER)]
        self.formats = {name: found for model in models for name, found in formats(model)}
        self._vision = Cut(directory, models[0], vision_values(config), self.floats, threads)
        self._decoder = Cut(directory, models[1], decoder_values(config), self.floats, threads)

    def trace(self, prompt: Inputs, given: Trace) -> Trace:
        """What `prompt` leaves at every place, each part working on what the trace `given` passed on."""
        return self._see(prompt, given) | self._read(prompt, given)

    def _see(self, prompt: Inputs, given: Trace) -> Trace:
        runs, start, width = [], 0, self.session.config.vision.hidden_size
        for media in prompt.media:
            for feeds in self.session.vision.feeds(media):
                shape = feeds["pixel_values"].shape[:2]
                rows = slice(start, start := start + shape[0] * shape[1])
                fixed = {
                    place: given[place][rows].reshape(*shape, width) for place in self._vision.places.values()
                }
                runs.append(self._vision.run(feeds, fixed, "features"))
        if not runs:
            return {}
        features = np.concatenate([found for _, found in runs], axis=1)
        seen = {place: np.concatenate([rows[place] for rows, _ in runs]) for place in runs[0][0]}
        return seen | {MERGER: features[0]} | {deepstack(tap): x for tap, x in enumerate(features[1:])}

    def _read(self, prompt: Inputs, given: Trace) -> Trace:
        session, size = self.session, len(prompt.input_ids)
        config = session.config
        taps = len(config.vision.deepstack_visual_indexes)
        where = np.flatnonzero(np.isin(prompt.input_ids, (config.image_token_id, config.video_token_id)))
        features = [given[place] for place in (MERGER, *map(deepstack, range(taps))) if place in given]
        tokens = VisionTokens(
            where, np.stack(features) if features else np.empty((1 + taps, 0, 0), np.float32)
        )
        arrays = session.arrays(1, size, size, size)
        arrays["logit_rows"][:] = np.arange(size)
        positions = session.fill(arrays, [prompt], [tokens], 0, size)
        session.inputs.place(arrays, np.zeros(1, np.int64), np.array([size]), positions)
        found: Trace = {TOKENS: np.asarray(session.embedding[prompt.input_ids], np.float32)}
        arrays["inputs_embeds"][0] = entering(given, prompt, config)
        fixed = {place: given[place][None] for place in self._decoder.places.values() if place in given}
        for tap in range(taps):  # in the graph it joins what the layer's mlp adds
            fixed[added(tap)] = fixed[added(tap)] + fixed[decoder_layer(tap, "mlp")]
        turns = np.split(given[ROTARY][None], 2, axis=-1)
        if "rotary_cos" in arrays:  # computed by the host
            found[ROTARY] = np.concatenate([arrays["rotary_cos"][0], arrays["rotary_sin"][0]], axis=-1)
            arrays["rotary_cos"][:], arrays["rotary_sin"][:] = turns
        else:
            fixed |= {Place(COS): turns[0], Place(SIN): turns[1]}
        del arrays["logits"]
        cache = {f"past_{name}": array for name, array in session.cache_arrays(1, size).items()}
        seen, logits = self._decoder.run({**arrays, **cache}, fixed, "logits")
        if Place(COS) in seen:
            found[ROTARY] = np.concatenate([seen.pop(Place(COS)), seen.pop(Place(SIN))], axis=-1)
        for tap in range(taps):
            seen[added(tap)] = seen[added(tap)] - given[decoder_layer(tap, "mlp")]
        return found | seen | {LOGITS: logits}


class Cut:
    """A graph in which some values are outputs, and inputs to whatever reads them."""

    def __init__(
        self, directory: Path, model: ModelProto, values: dict[str, Place], floats: Any, threads: int | None
    ) -> None:
        made = {output for node in model.graph.node for output in node.output}
        self.places = {value: place for value, place in values.items() if value in made}
        self.floats = floats
        for node in model.graph.node:
            node.input[:] = [f"{name}.given" if name in self.places else name for name in node.input]
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(floats))
        model.graph.input.extend(
            helper.make_tensor_value_info(f"{name}.given", kind, None) for name in self.places
        )
        model.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name in self.places)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4
        # Higher levels fuse INT4 weights into products, and of a model read from memory they find only zeros.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(directory)
        )
        self._session = ort.InferenceSession(
            model.SerializeToString(), options, providers=[CPU], disabled_optimizers=["ConstantFolding"]
        )

    def run(
        self, feeds: dict[str, Any], given: Trace, output: str
    ) -> tuple[Trace, NDArray[np.floating[Any]]]:
        """Rows [T, .] of every value, and an output of the graph."""
        fixed = {
            f"{name}.given": np.ascontiguousarray(given[place], self.floats)
            for name, place in self.places.items()
        }
        names = [*self.places, output]
        *found, last = self._session.run(names, {**feeds, **fixed})
        rows = [np.asarray(value, np.float32).reshape(-1, value.shape[-1]) for value in found]
        return dict(zip(self.places.values(), rows, strict=True)), np.asarray(last, np.float32)


def vision_values(config: ModelConfig) -> dict[str, Place]:
    """Names of values in the vision graph."""
    ends = dict(zip(PARTS, ("attn.proj.biased", "mlp.linear_fc2.biased"), strict=True))
    blocks = {
        f"{VISUAL}.blocks.{block}.{end}": vision_block(block, part)
        for block in range(config.vision.depth)
        for part, end in ends.items()
    }
    return {"position.3": VISION_EMBEDDING, **blocks}


def decoder_values(config: ModelConfig) -> dict[str, Place]:
    """Names of values in the decoder graph."""
    values = {COS: Place(COS), SIN: Place(SIN)}
    for layer in range(config.text.num_hidden_layers):
        prefix = f"{MODEL}.layers.{layer}"
        for part, end in zip(PARTS, ("self_attn.o_proj", "mlp.down_proj"), strict=True):
            values[f"{prefix}.{end}"] = decoder_layer(layer, part)
        if layer < len(config.vision.deepstack_visual_indexes):
            values[f"{prefix}.deepstack"] = added(layer)
    return values


def formats(model: ModelProto) -> Iterable[tuple[str, Format]]:
    """Linears whose weights a graph holds in fewer than 16 bits, and how."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "MatMulNBits":
            found = Format("int", options["bits"], options["block_size"], options.get("accuracy_level") == 4)
        elif node.op_type == "DynamicQuantizeMatMul":
            found = Format("int", 8, None, activations=True)
        elif node.op_type == "DequantizeLinear" and node.input[0] in kinds:
            kind = kinds[node.input[0]]
            floats = kind == TensorProto.FLOAT8E4M3FN
            found = Format("fp8", activations=True) if floats else Format("int", 4, options["block_size"])
        else:
            continue
        for name in linears(node):
            yield name, found


def linears(node: NodeProto) -> list[str]:
    """The linears whose weight a node holds: several, where one product serves them all."""
    owner, _, last = node.name.removesuffix(".rows").removesuffix(".weight").rpartition(".")
    return [f"{owner}.{name}".removeprefix(".") for name in last.split("+")]
