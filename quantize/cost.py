"""Operations of quantising a decoder, counted from its shape: what a forecast of the time is made from."""

from __future__ import annotations

from engines.config import ModelConfig

# As in the modules that do the work, which need torch.
MOMENT_BLOCK, ERROR_ROWS, RATIOS, SHRINKS = 512, 256, 20, 21
# What rounding a weight at one scale takes, in operations of a matrix product of the same duration.
ROUNDING = 40


def operations(config: ModelConfig, method: str, tokens: int, group_size: int) -> float:
    """Operations over all layers on `tokens` calibration tokens; the vision tower's are not among them.

    Divided by the machine's rate in matrix products it is the time: of the wide matrices that is what is
    spent on; the rounding of single weights is expressed in such operations too. method: gptq, awq or rtn.
    """
    text = config.text
    hidden, inner = text.hidden_size, text.intermediate_size
    queries, values = (
        heads * text.head_dim for heads in (text.num_attention_heads, text.num_key_value_heads)
    )
    total = 0.0
    # Outputs N and inputs K of each group of linears, how many they are, and whether AWQ can scale its input.
    for N, K, linears, scaled in (
        (queries + 2 * values, hidden, 3, True),
        (hidden, queries, 1, queries == values),
        (2 * inner, hidden, 2, True),
        (hidden, inner, 1, True),
    ):
        # o_proj and down_proj run twice: before they are quantised too, for the stream they write to.
        total += 2 * tokens * N * K * (2 if linears == 1 else 1)
        total += tokens * K * (K + MOMENT_BLOCK)
        total += 3 * linears * 2 * ERROR_ROWS * K * K
        if method != "rtn":
            total += 2 / 3 * K**3 + N * K * K + SHRINKS * N * K * ROUNDING
        if method == "awq":
            total += scaled * RATIOS * ERROR_ROWS * K * (2 * K + 6 * (ROUNDING + 2 * group_size))
    return total * text.num_hidden_layers
