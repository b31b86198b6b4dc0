"""SAM's prompt encoder and mask decoder run on many different prompt sets in one call.

segment_anything's own `forward` repeats one image's embedding and wants every set of a call to hold the
same kinds of prompts. Here each set brings its image's embedding, and sets of unlike length share a call:
every set has P point slots and two box slots, the unused ones hidden from attention, so that the result is
what the set gives alone. Only weights of the stock modules are used; no Python branch depends on values, so
that the functions trace. Where all sets look at one image and none has a mask, the keys are alike until the
first layer has seen the tokens: give one embedding and one dense embedding, and that part is computed once.

Frame: the encoder's input of S x S pixels (S = 1024 in SAM), SAM's conventions (boxes as pixel indices; 0.5
is added here). Knows no image, no file and no half-open box.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from samdistill.errors import InputRejected
from samdistill.teacher_frame import UNUSED

__all__ = [
    "UNUSED",
    "PromptBatch",
    "attend",
    "check_finite",
    "decode",
    "draw",
    "encode_points",
    "encode_prompts",
]


class PromptBatch(NamedTuple):
    """N prompt sets, padded to common length."""

    points: torch.Tensor  # (N, P, 2) float32 xy, encoder's input frame
    point_labels: torch.Tensor  # (N, P) int64: 1, 0, -1 SAM's padding token, UNUSED
    boxes: torch.Tensor  # (N, 4) float32 xyxy pixel indices, encoder's input frame
    has_box: torch.Tensor  # (N,) bool
    masks: torch.Tensor  # (N, 1, 4h, 4w) float32 logits, low-resolution frame
    has_mask: torch.Tensor  # (N,) bool


def encode_prompts(encoder: nn.Module, batch: PromptBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn prompt sets into tokens and dense embeddings.

    Parameters
    ----------
    encoder
        segment_anything's PromptEncoder. If it has a method `box_prior`, (N, 4) boxes to (N, 1, 4h, 4w)
        logits, that stands in for the mask of the sets that have a box and no mask.

    Returns
    -------
    tuple
        (N, P + 2, C) tokens, (N, P + 2) bool which of them exist, (N, h w, C) dense embeddings.
    """
    e: Any = encoder
    points = encode_points(encoder, batch.points, batch.point_labels)
    corners = e.pe_layer.forward_with_coords(batch.boxes.reshape(-1, 2, 2) + 0.5, e.input_image_size)
    corners = corners + torch.cat([e.point_embeddings[2].weight, e.point_embeddings[3].weight])
    exists = torch.cat([batch.point_labels != UNUSED, batch.has_box[:, None].expand(-1, 2)], dim=1)

    masks, has_dense = batch.masks, batch.has_mask
    if hasattr(e, "box_prior"):
        masks = torch.where(batch.has_mask[:, None, None, None], masks, e.box_prior(batch.boxes))
        has_dense = batch.has_mask | batch.has_box
    # The last convolution is one pixel wide: on tokens a product of matrices, and few channels are turned.
    *narrowing, widening = e.mask_downscaling
    for module in narrowing:
        masks = module(masks)
    narrow = masks.flatten(2).transpose(1, 2)
    drawn = functional.linear(narrow.flatten(0, 1), widening.weight.flatten(1), widening.bias)
    drawn = drawn.reshape(*narrow.shape[:2], -1)
    dense = torch.where(has_dense[:, None, None], drawn, e.no_mask_embed.weight)
    return torch.cat([points, corners], dim=1), exists, dense


def encode_points(encoder: nn.Module, points: torch.Tensor, point_labels: torch.Tensor) -> torch.Tensor:
    """(N, P, 2) points of (N, P) labels, as in `PromptBatch`, to (N, P, C) tokens."""
    e: Any = encoder
    labels = point_labels[..., None]
    tokens = e.pe_layer.forward_with_coords(points + 0.5, e.input_image_size)
    tokens = torch.where(labels == -1, e.not_a_point_embed.weight, tokens)
    kinds = (labels == 0) * e.point_embeddings[0].weight + (labels == 1) * e.point_embeddings[1].weight
    encoded: torch.Tensor = tokens + kinds
    return encoded


def decode(
    decoder: nn.Module,
    image_embeddings: torch.Tensor,
    image_pe: torch.Tensor,
    tokens: torch.Tensor,
    exists: torch.Tensor,
    dense: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predict all four masks of each prompt set.

    Parameters
    ----------
    decoder
        segment_anything's MaskDecoder.
    image_embeddings
        (N, C, h, w), each set's own image; or (1, C, h, w) with a `dense` of one, (1, h w or 1, C), for all.
    image_pe
        (1, C, h, w), `PromptEncoder.get_dense_pe()`.
    tokens, exists, dense
        As `encode_prompts` returns them.

    Returns
    -------
    tuple
        (N, 4, 4h, 4w) logits, the single mask first and then the three of multimask; (N, 4) predicted IoU.
    """
    queries, keys, scores = attend(decoder, image_embeddings, image_pe, tokens, exists, dense)
    return draw(decoder, queries, keys, (image_embeddings.shape[-2], image_embeddings.shape[-1])), scores


def check_finite(logits: torch.Tensor, scores: torch.Tensor) -> None:
    """Refuse answers that are none: above no threshold, they would pass for empty masks."""
    if not (logits.isfinite().all() and scores.isfinite().all()):
        raise InputRejected(
            "the teacher must answer with finite numbers, not NaN or infinity: its weights are broken or "
            "overflow; no mask is given. Take other weights."
        )


def decode_one(
    decoder: nn.Module,
    image_embeddings: torch.Tensor,
    image_index: torch.Tensor,
    image_pe: torch.Tensor,
    tokens: torch.Tensor,
    exists: torch.Tensor,
    dense: torch.Tensor,
    multimask: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do as `decode` and take one mask a set, without drawing the other three.

    Parameters
    ----------
    decoder, image_pe, tokens, exists, dense
        As for `decode`.
    image_embeddings
        (M, C, h, w).
    image_index
        (N,) int64, which of them each set asks about.
    multimask
        (N,) bool: False the single mask, True the best of three by predicted IoU.

    Returns
    -------
    tuple
        (N, 4h, 4w) logits; (N,) predicted IoU.
    """
    keys = image_embeddings.flatten(2).transpose(1, 2)[image_index] + dense
    queries, keys, scores = _attended(decoder, keys, image_pe, tokens, exists)
    index = torch.where(multimask, 1 + scores[:, 1:].argmax(dim=1), 0)
    sets = torch.arange(index.shape[0], device=index.device)
    mixing = _mixing(decoder, queries)[sets, index]
    size = (image_embeddings.shape[-2], image_embeddings.shape[-1])
    return _drawn(decoder, mixing[:, None], keys, size)[:, 0], scores[sets, index]


def attend(
    decoder: nn.Module,
    image_embeddings: torch.Tensor,
    image_pe: torch.Tensor,
    tokens: torch.Tensor,
    exists: torch.Tensor,
    dense: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do the first half of `decode`: (N, 4, C) mask tokens, (N, h w, C) keys, (N, 4) predicted IoU."""
    keys = image_embeddings.flatten(2).transpose(1, 2) + dense
    return _attended(decoder, keys, image_pe, tokens, exists)


def _attended(
    decoder: nn.Module, keys: torch.Tensor, image_pe: torch.Tensor, tokens: torch.Tensor, exists: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do what `attend` does from keys, (N or 1, h w, C), that the prompts' dense embeddings are part of."""
    d: Any = decoder
    own = torch.cat([d.iou_token.weight, d.mask_tokens.weight])
    queries = torch.cat([own[None].expand(tokens.shape[0], -1, -1), tokens], dim=1)
    exists = torch.cat([torch.ones_like(exists[:, :1]).expand(-1, len(own)), exists], dim=1)
    queries, keys = _two_way(d.transformer, keys, image_pe.flatten(2).transpose(1, 2), queries, exists)
    return queries[:, 1 : len(own)], keys, d.iou_prediction_head(queries[:, 0])


def draw(
    decoder: nn.Module, mask_tokens: torch.Tensor, keys: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Do the second half of `decode`: (N, 4, 4h, 4w) logits, keys being of an embedding of `size` (h, w)."""
    return _drawn(decoder, _mixing(decoder, mask_tokens), keys, size)


def _mixing(decoder: nn.Module, mask_tokens: torch.Tensor) -> torch.Tensor:
    """(N, 4, C) mask tokens to (N, 4, C / 8), how each mask mixes the upscaled channels."""
    d: Any = decoder
    return torch.stack([mlp(mask_tokens[:, i]) for i, mlp in enumerate(d.output_hypernetworks_mlps)], dim=1)


def _drawn(
    decoder: nn.Module, mixing: torch.Tensor, keys: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """(N, M, C / 8) mixing of M masks to (N, M, 4h, 4w) logits."""
    d: Any = decoder
    (height, width), (n, count) = size, mixing.shape[:2]
    logits = (_upscale(d.output_upscaling, keys) @ mixing.transpose(1, 2)).transpose(1, 2)  # (N, M, hw 16)
    # y, x, then dy, dx of the first and of the second doubling.
    logits = logits.reshape(n, count, height, width, 2, 2, 2, 2)
    return logits.permute(0, 1, 2, 4, 6, 3, 5, 7).reshape(n, count, 4 * height, 4 * width)


def _two_way(
    transformer: Any, keys: torch.Tensor, key_pe: torch.Tensor, tokens: torch.Tensor, exists: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """TwoWayTransformer.forward, tokens that do not exist being no keys to anybody."""
    queries = tokens
    for layer in transformer.layers:
        if layer.skip_first_layer_pe:
            queries = _among_tokens(layer.self_attn, queries, queries, exists)
        else:
            queries = queries + _among_tokens(layer.self_attn, queries + tokens, queries, exists)
        queries = layer.norm1(queries)
        seen = keys + key_pe
        queries = queries + _from_image(layer.cross_attn_token_to_image, queries + tokens, seen, keys)
        queries = layer.norm2(queries)
        queries = layer.norm3(queries + layer.mlp(queries))
        image = _to_image(layer.cross_attn_image_to_token, seen, queries + tokens, queries, exists)
        keys = layer.norm4(keys + image)
    final = transformer.final_attn_token_to_image
    queries = queries + _from_image(final, queries + tokens, keys + key_pe, keys)
    return transformer.norm_final_attn(queries), keys


def _upscale(upscaling: Any, keys: torch.Tensor) -> torch.Tensor:
    """SAM's two transposed convolutions on tokens: (N, hw, C) to (N, hw x 4 x 4, C / 8), sub-pixels last.

    A 2 x 2 transposed convolution of stride 2 is a linear map from a token to its four sub-pixels; run as
    such, every operation is contiguous and its normalisation is the ordinary layer norm.
    """
    first, norm, activation, second, _ = upscaling
    x = _double(first, keys)
    x = functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
    upscaled: torch.Tensor = activation(_double(second, activation(x)))
    return upscaled


def _double(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """(N, K, C) to (N, 4 K, C'), the four sub-pixels of each token in raster order."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2 2 C', C)
    # On a matrix, since engines add the bias within a product of matrices and after one of stacks.
    doubled = functional.linear(x.flatten(0, 1), weight, conv.bias.repeat(4))
    return doubled.reshape(x.shape[0], 4 * x.shape[1], conv.out_channels)


# segment_anything's Attention three times, each where its cost lies. There are thousands of image keys and a
# dozen tokens: the projections of the keys are folded into the tokens' side, (x W) y = x (W y), so that
# nothing is done to every key but the two products that attention consists of.


def _among_tokens(attention: Any, q: torch.Tensor, v: torch.Tensor, exists: torch.Tensor) -> torch.Tensor:
    """Attention.forward(q, q, v) among (N, T, C) tokens of which (N, T) exist."""
    query, key, value = (
        attention._separate_heads(projected, attention.num_heads)
        for projected in (attention.q_proj(q), attention.k_proj(q), attention.v_proj(v))
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~exists[:, None, None, :], -torch.inf).softmax(dim=-1)
    mixed: torch.Tensor = attention.out_proj(attention._recombine_heads(weights @ value))
    return mixed


def _from_image(attention: Any, tokens: torch.Tensor, seen: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Attention.forward(tokens, seen, keys): (N, T, C) from (N or 1, K, C) of the image."""
    heads = attention.num_heads
    query = attention._separate_heads(attention.q_proj(tokens), heads)  # (N, heads, T, c)
    # The key's bias adds the same to all scores of a query and falls out of the softmax.
    asked = query @ _per_head(attention.k_proj.weight, heads) / math.sqrt(query.shape[-1])
    weights = _times_image(asked, seen.transpose(1, 2)).softmax(dim=-1)
    found = _times_image(weights, keys)  # (N, heads, T, C)
    value = found @ _per_head(attention.v_proj.weight, heads).transpose(1, 2)
    value = value + attention.v_proj.bias.reshape(heads, 1, -1)
    mixed: torch.Tensor = attention.out_proj(attention._recombine_heads(value))
    return mixed


def _to_image(
    attention: Any, seen: torch.Tensor, k: torch.Tensor, v: torch.Tensor, exists: torch.Tensor
) -> torch.Tensor:
    """Attention.forward(seen, k, v): (N, K, C) for the image from (N, T, C) tokens of which (N, T) exist."""
    heads = attention.num_heads
    key = attention._separate_heads(attention.k_proj(k), heads)  # (N, heads, T, c)
    key = key / math.sqrt(key.shape[-1])
    asked = key @ _per_head(attention.q_proj.weight, heads)
    offset = key @ attention.q_proj.bias.reshape(heads, -1, 1)
    offset = offset.masked_fill(~exists[:, None, :, None], -torch.inf)
    scores = _times_image(asked, seen.transpose(1, 2)) + offset
    # Softmax over the tokens, by hand: engines transpose all of it for one that is not of the last axis.
    likely = (scores - scores.amax(dim=2, keepdim=True)).exp()
    weights = likely / likely.sum(dim=2, keepdim=True)
    value = attention._separate_heads(attention.v_proj(v), heads)
    given = value @ attention.out_proj.weight.reshape(-1, heads, value.shape[-1]).permute(1, 2, 0)
    given = given + attention.out_proj.bias / heads  # each head's weights sum to 1
    shown: torch.Tensor = weights.flatten(1, 2).transpose(1, 2) @ given.flatten(1, 2)
    return shown


def _per_head(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """(heads c, C) projection weights to (heads, c, C)."""
    return weight.reshape(heads, -1, weight.shape[1])


def _times_image(tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """(N, heads, T, x) @ (N or 1, x, y) to (N, heads, T, y); one image for all is one product."""
    n, heads, count, inner = tokens.shape
    if image.shape[0] == 1:
        product = tokens.reshape(1, n * heads * count, inner) @ image
    else:
        product = tokens.reshape(n, heads * count, inner) @ image
    return product.reshape(n, heads, count, -1)
