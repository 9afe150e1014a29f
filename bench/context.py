"""Items longer than a model's context, refused before any is asked."""

from __future__ import annotations

from collections.abc import Sequence

from bench.tasks import Item
from engines.errors import UserError


def check_context(items: Sequence[Item], lengths: Sequence[int], max_tokens: int, context: int) -> None:
    """UserError naming the longest item unless each prompt and an answer of `max_tokens` fit `context`."""
    too_long = sum(length + max_tokens > context for length in lengths)
    if not too_long:
        return
    longest = max(range(len(items)), key=lengths.__getitem__)
    item, others = items[longest], f" (and {too_long - 1} more)" if too_long > 1 else ""
    remedy = "take a shorter suite or drop it"
    if lengths[longest] < context:
        remedy = f"allow answers of {context - lengths[longest]:,} tokens at most, {remedy}"
    needs = f"{lengths[longest]:,} tokens, {lengths[longest] + max_tokens:,} with its answer"
    raise UserError(
        f"item {item.id[:12]} of {item.task}{others} has {needs}: the context is {context:,}; {remedy}"
    )
