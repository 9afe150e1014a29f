"""The micro Qwen3-VL and a lean forward for training it.

The forward reads the parameters of transformers' own module, so what is trained is what transformers loads.
It wins its speed by what a batch of equal pictures allows: no packing, no masks, plain scaled dot product
attention, blocks that torch.compile fuses. A test holds its logits to transformers' on text, images, video.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
import transformers.vision_utils as vision_utils
from torch import Tensor
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from bench.micro.batches import Batch
from bench.micro.tokenizer import VOCAB, MicroTokens

PATCH = 8


def micro_config(tokens: MicroTokens) -> Any:
    """Qwen3-VL at 2.1 M parameters."""
    # Larger than transformers' 0.02: at this width the residual stream would start too quiet to learn from.
    initializer_range = 0.04
    return Qwen3VLConfig(
        text_config={
            "vocab_size": VOCAB, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5], "mrope_interleaved": True,
            },
            "initializer_range": initializer_range, "tie_word_embeddings": True,
            "eos_token_id": tokens.end, "pad_token_id": tokens.pad, "bos_token_id": tokens.pad,
        },
        vision_config={
            "depth": 3, "hidden_size": 128, "intermediate_size": 256, "num_heads": 4, "patch_size": PATCH,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 128,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1], "initializer_range": initializer_range,
        },
        image_token_id=tokens.image, video_token_id=tokens.video,
        vision_start_token_id=tokens.vision_start, vision_end_token_id=tokens.vision_end,
        tie_word_embeddings=True,
    )  # fmt: skip


def new_model(tokens: MicroTokens) -> Any:
    return Qwen3VLForConditionalGeneration(micro_config(tokens))


class Output(NamedTuple):
    """N is the number of positions whose next token is a target."""

    logits: Tensor  # [N, vocab]
    targets: Tensor  # [N]
    where: Tensor  # bool [B, L - 1], those positions
    vision: Tensor | None  # [B, visual tokens, H], the tower's output under the decoder's last norm


def forward(
    model: Any, batch: Batch, blocks: tuple[Callable[..., Tensor], Callable[..., Tensor]] | None = None
) -> Output:
    """Teacher-forced forward. `blocks` are compiled stand-ins for `vision_block` and `text_block`."""
    on_vision, on_text = blocks or (vision_block, text_block)
    text = model.model.language_model
    x = text.embed_tokens(batch.ids)
    deepstack: list[Tensor] = []
    vision = None
    if batch.media:
        merged, deepstack = _encode(model.model.visual, batch, on_vision)
        vision = _rms(text.norm, merged)
        slots = batch.visual[:, :, None].expand_as(x)
        x = x.masked_scatter(slots, merged.to(x.dtype))
        deepstack = [torch.zeros_like(x).masked_scatter(slots, d.to(x.dtype)) for d in deepstack]
    with torch.no_grad():
        cos, sin = text.rotary_emb(x, batch.positions)
        cos, sin = cos[:, None], sin[:, None]
    for i, layer in enumerate(text.layers):
        x = on_text(layer, x, cos, sin)
        if i < len(deepstack):
            x = x + deepstack[i]
    targets = batch.labels[:, 1:]
    where = targets >= 0
    logits = F.linear(_rms(text.norm, x[:, :-1][where]), text.embed_tokens.weight)
    return Output(logits, targets[where], where, vision)


def _encode(visual: Any, batch: Batch, block: Callable[..., Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Embeddings [B, visual tokens, H] of all media in order, and the same for each deepstack level."""
    size = len(batch.ids)
    parts: list[list[Tensor]] = []
    for pixels, (h, w) in batch.media:
        # [B, T, patches, pixels]: every frame pair is a picture of its own to the tower.
        x = pixels.flatten(0, 1).to(torch.float32).div_(127.5).sub_(1)
        parts.append([y.reshape(size, -1, y.shape[-1]) for y in _tower(visual, x, h, w, block)])
    merged, *deepstack = (torch.cat(level, 1) for level in zip(*parts, strict=True))
    return merged, deepstack


def _tower(visual: Any, pixels: Tensor, h: int, w: int, block: Callable[..., Tensor]) -> list[Tensor]:
    """[N, h w, 3 2 P P] -> merged [N, h w / 4, H] and the deepstack levels."""
    grid = torch.tensor([[1, h, w]])
    with torch.no_grad():
        index, weight = vision_utils.get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=visual.spatial_merge_size,
            kwargs={},
        )
        position = vision_utils.get_vision_position_ids(grid, visual.spatial_merge_size, kwargs={})
        cos, sin = visual.rotary_pos_emb(pixels, position)
    projection = visual.patch_embed.proj
    x = F.linear(pixels, projection.weight.flatten(1), projection.bias)
    x = x + (visual.pos_embed(index) * weight[:, :, None]).sum(1)
    levels = []
    for i, layer in enumerate(visual.blocks):
        x = block(layer, x, cos, sin)
        if i in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(i)]
            levels.append(_merge(merger, x))
    return [_merge(visual.merger, x), *levels]


def _merge(merger: Any, x: Tensor) -> Tensor:
    n, tokens, width = x.shape
    if merger.use_postshuffle_norm:
        x = merger.norm(x.reshape(n, tokens // 4, 4 * width))
    else:
        x = merger.norm(x).reshape(n, tokens // 4, 4 * width)
    return merger.linear_fc2(F.gelu(merger.linear_fc1(x)))  # type: ignore[no-any-return]


def vision_block(layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n, tokens, width = x.shape
    attention = layer.attn
    qkv = attention.qkv(layer.norm1(x)).view(n, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    x = x + attention.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width))
    hidden = F.gelu(layer.mlp.linear_fc1(layer.norm2(x)), approximate="tanh")
    return x + layer.mlp.linear_fc2(hidden)  # type: ignore[no-any-return]


def text_block(layer: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    n, length, _ = x.shape
    attention = layer.self_attn
    y = _rms(layer.input_layernorm, x)
    heads = (n, length, -1, attention.head_dim)
    q = _rotate(_rms(attention.q_norm, attention.q_proj(y).view(heads)).transpose(1, 2), cos, sin)
    k = _rotate(_rms(attention.k_norm, attention.k_proj(y).view(heads)).transpose(1, 2), cos, sin)
    v = attention.v_proj(y).view(heads).transpose(1, 2)
    groups = attention.num_key_value_groups
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(n, length, -1)
    x = x + attention.o_proj(y)
    y = _rms(layer.post_attention_layernorm, x)
    y = F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y)
    return x + layer.mlp.down_proj(y)  # type: ignore[no-any-return]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def _rms(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
