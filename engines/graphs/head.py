"""The language model's head: logits of a large vocabulary at the price of a small one.

Beside a 4-bit decoder a 16-bit head would be half of the bytes that every token reads. So all logits are
first computed in 4 bits, then the few that can win once more from the 16-bit rows: the tokens chosen are the
16-bit head's, and only the tail of the distribution is rounded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.checkpoint import Checkpoint
from engines.graphs import Dialect
from engines.graphs.fused import Fused
from engines.graphs.standard import Standard
from engines.int4 import Int4, nearest
from engines.int8 import Int8
from engines.onnx_files import HEAD, HEAD_ROWS, EmbeddingTable

EXACT = 32  # logits of each row that are computed from 16-bit weights


def head(graph: Dialect, checkpoint: Checkpoint, x: str, embedding: EmbeddingTable) -> str:
    """Logits [R, V] of x [R, H]. A tied head reads `embedding`, a file beside the graph: no second copy."""
    tied = checkpoint.config.tie_word_embeddings
    weight = embedding if tied else checkpoint.weight("lm_head")
    if isinstance(weight, Int4 | Int8):  # by whoever wrote the checkpoint: there are no 16-bit rows
        if isinstance(graph, Fused):
            return graph.linear("lm_head", x, weight)
        weight = weight.dequantize().astype(np.float16)
    file = Path(str(embedding.filename)) if tied else None
    stored = graph.stored(HEAD, weight, file)
    if isinstance(graph, Standard):
        return graph.op("Gemm", [x, graph.cast(stored, np.float16)], name="lm_head", transB=1)
    if not checkpoint.quantization:
        return _in_slices(graph, x, stored, len(weight))
    rounded = graph.linear("lm_head", x, nearest(weight, group_size(weight.shape[1])))
    return _exact(graph, x, rounded, stored, min(EXACT, len(weight)))


def _in_slices(graph: Fused, x: str, weight: str, rows: int) -> str:
    """x @ weight.T where only a slice of the 16-bit weight is ever held in fp32.

    A slice begins where the one before ended, as its result tells: so they are made one after another.
    """
    parts: list[str] = []
    axis, start = graph.constant([0]), graph.op("Sub", [width := graph.width(x), width], name="lm_head.start")
    for stop in range(HEAD_ROWS, rows + HEAD_ROWS, HEAD_ROWS):
        name = f"lm_head.{len(parts)}"
        bounds = [start, graph.constant([min(stop, rows)])]
        slice_ = graph.op("Slice", [weight, *bounds, axis], name=f"{name}.weight")
        parts.append(graph.op("Gemm", [x, graph.cast(slice_, np.float32)], name=name, transB=1))
        start = graph.op("Add", [start, graph.width(parts[-1])], name=f"{name}.end")
    return graph.op("Concat", parts, name="lm_head", axis=1)


def group_size(columns: int) -> int:
    """The largest power of two up to 128 that divides the columns."""
    return min(128, columns & -columns)


def _exact(graph: Fused, x: str, logits: str, weight: str, count: int) -> str:
    """`logits` with the `count` largest of each row computed again from the 16-bit rows of `weight`."""
    best = graph.ops("TopK", [logits, graph.constant([count])], ["head.best.rounded", "head.best"], sorted=0)[
        1
    ]
    rows = graph.cast(graph.op("Gather", [weight, best], name="head.best.weight"), np.float32)
    last = graph.constant([2])
    column = graph.op("Unsqueeze", [x, last], name="head.column")
    products = graph.op("MatMul", [rows, column], name="head.best.products")
    exact = graph.op("Squeeze", [products, last], name="head.best.logits")
    return graph.op("ScatterElements", [logits, best, exact], name="head.logits", axis=1)
