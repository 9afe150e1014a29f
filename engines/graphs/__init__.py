"""The model's two graphs, written once and spelled in either of two dialects."""

from engines.graphs.fused import Fused
from engines.graphs.standard import Standard

Dialect = Fused | Standard
