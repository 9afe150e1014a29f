"""The table: medians over rounds with their range, ratios to our artifact, fractions of the machine's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from bench.peers.machine import Machine, Speed
from bench.peers.measure import CONTEXT, IMAGE, TOGETHER, TOGETHER_CONTEXT, TOKENS, Arm, Results, Visit
from engines.config import TextConfig

COLUMNS = (
    "engine",
    "decode, tokens/s",
    "× ours",
    "% of read bandwidth",
    f"prefill {CONTEXT}, tokens/s",
    "× ours",
    "% of fp32 peak",
    f"{TOGETHER} at once, tokens/s",
    "× ours",
    f"vision {IMAGE}×{IMAGE}, ms",
    "load to first token, s",
    "peak memory, text / with vision, GB",
    "size, GB",
)


@dataclass(frozen=True)
class Figure:
    """Median over rounds with the lowest and the highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One engine. Ratios are taken within each round: above 1 is faster than our first artifact."""

    name: str
    engine: str
    kv_cache: str
    rounds: int
    decode: Figure
    decode_ratio: Figure
    bandwidth: float  # fraction
    prefill: Figure
    prefill_ratio: Figure
    peak: float  # fraction
    together: Figure | None
    together_ratio: Figure | None
    vision: Figure | None  # seconds
    vision_problem: str
    load: Figure
    text_memory: int
    memory: int
    bytes: int


def rows(results: Results, arms: Sequence[Arm], config: TextConfig) -> list[Row]:
    """One for each arm that was measured, ours first and then as they were given."""
    ours = next((results.visits[arm.name] for arm in arms if results.visits[arm.name]), [])
    speed = Speed(
        median(speed.read for speed in results.speeds), median(speed.fp32 for speed in results.speeds)
    )
    return [_row(arm, visits, ours, speed, config) for arm in arms if (visits := results.visits[arm.name])]


def _row(arm: Arm, visits: list[Visit], ours: list[Visit], speed: Speed, config: TextConfig) -> Row:
    about = visits[0].about
    decode = Figure.of([decode_rate(visit) for visit in visits])
    prefill = Figure.of([prefill_rate(visit) for visit in visits])
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    read = about["read_bytes"] + about["kv_value_bytes"] * values * (CONTEXT + TOKENS / 2)
    seen = [visit.vision for visit in visits if visit.vision is not None]
    return Row(
        name=arm.name,
        engine=about["engine"],
        kv_cache=about["kv_cache"],
        rounds=len(visits),
        decode=decode,
        decode_ratio=_ratio(visits, ours, decode_rate),
        bandwidth=read * decode.median / speed.read,
        prefill=prefill,
        prefill_ratio=_ratio(visits, ours, prefill_rate),
        peak=prefill_operations(config, CONTEXT) / CONTEXT * prefill.median / speed.fp32,
        together=Figure.of([together_rate(visit) for visit in visits]) if visits[0].together else None,
        together_ratio=_ratio(visits, ours, together_rate) if visits[0].together else None,
        vision=Figure.of(seen) if seen else None,
        vision_problem=visits[0].vision_problem,
        load=Figure.of([visit.load_to_first_token for visit in visits]),
        text_memory=max(visit.text_memory for visit in visits),
        memory=max(visit.memory for visit in visits),
        bytes=about["text_bytes"] + about["vision_bytes"],
    )


def decode_rate(visit: Visit) -> float:
    """Tokens a second of one sequence."""
    return 1 / median(visit.decode)


def prefill_rate(visit: Visit) -> float:
    """Prompt tokens a second."""
    return CONTEXT / visit.prefill


def together_rate(visit: Visit) -> float:
    """Tokens a second of all sequences."""
    return TOGETHER / median(visit.together)


def prefill_operations(config: TextConfig, tokens: int) -> float:
    """Multiplications and additions of a prompt: linears, causal attention, and the head for one token."""
    hidden, wide = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    linears = hidden * (2 * wide + 2 * keys + 3 * config.intermediate_size)
    attention = wide * (tokens + 1)  # products with keys and with values, half of them masked
    return 2.0 * (config.num_hidden_layers * tokens * (linears + attention) + config.vocab_size * hidden)


def _ratio(visits: list[Visit], ours: list[Visit], rate: Callable[[Visit], float]) -> Figure:
    base = {visit.round: rate(visit) for visit in ours}
    return Figure.of([rate(visit) / base[visit.round] for visit in visits])


def cells(row: Row) -> list[str]:
    """One line of the table as people read it."""
    return [
        row.name,
        range_of(row.decode, "{:.1f}"),
        range_of(row.decode_ratio, "{:.2f}"),
        f"{100 * row.bandwidth:.0f}",
        range_of(row.prefill, "{:.0f}"),
        range_of(row.prefill_ratio, "{:.2f}"),
        f"{100 * row.peak:.0f}",
        range_of(row.together, "{:.1f}"),
        range_of(row.together_ratio, "{:.2f}"),
        range_of(row.vision, "{:.0f}", 1000),
        range_of(row.load, "{:.1f}"),
        f"{row.text_memory / 1e9:.2f} / {f'{row.memory / 1e9:.2f}' if row.vision else '-'}",
        f"{row.bytes / 1e9:.2f}",
    ]


def markdown(
    found: Sequence[Row], problems: Mapping[str, str], machine: Machine, speeds: Sequence[Speed], header: str
) -> str:
    """The page for docs/results."""
    read, fp32 = (Figure.of([getattr(speed, name) / 1e9 for speed in speeds]) for name in ("read", "fp32"))
    lines = [
        "# The same checkpoint in other engines",
        "",
        header,
        "",
        f"{machine.processor}, {', '.join(machine.instructions) or 'no vector instructions known'}; "
        f"{machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB, {machine.system}. "
        f"It reads {range_of(read, '{:.1f}')} GB/s and multiplies {range_of(fp32, '{:.0f}')} GFLOP/s in "
        "fp32.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cells(row)) + " |" for row in found),
        *(
            f"| {name} | not measured: {reason} |" + " |" * (len(COLUMNS) - 2)
            for name, reason in problems.items()
        ),
        "",
        "Median over rounds (lowest–highest). × ours: within each round; above 1 beats the first line. "
        f"Decode: {TOKENS - 1} tokens after {CONTEXT}, one sequence, greedy. {TOGETHER} at once: after "
        f"{TOGETHER_CONTEXT} tokens each. Read bandwidth: of weights, keys and values for each token. "
        "fp32 peak: kernels that multiply int8 may exceed it. Load: the model opened and 8 tokens read, "
        "from a warm page cache. Memory includes mapped weights.",
        "",
        "| engine | version | keys and values | rounds | |",
        "|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.engine} | {row.kv_cache} | {row.rounds} | "
            f"{'no vision: ' + row.vision_problem if row.vision_problem else ''} |"
            for row in found
        ),
    ]
    return "\n".join(lines) + "\n"


def document(
    found: Sequence[Row], results: Results, machine: Machine, conditions: dict[str, Any]
) -> dict[str, Any]:
    """Everything, every visit included, as JSON."""
    return {
        **conditions,
        "machine": asdict(machine),
        "speeds": [asdict(speed) for speed in results.speeds],
        "rows": [asdict(row) for row in found],
        "problems": results.problems,
        "visits": {name: [asdict(visit) for visit in visits] for name, visits in results.visits.items()},
    }


def range_of(figure: Figure | None, shape: str, factor: float = 1.0) -> str:
    """`median (lowest–highest)`, one figure where they are the same, a dash where there is none."""
    if figure is None:
        return "-"
    middle, low, high = (shape.format(factor * value) for value in (figure.median, figure.low, figure.high))
    return middle if low == high else f"{middle} ({low}–{high})"
