r"""The decoders of the detector on a CPU, without what only training needs.

Mask logits are products of a query's vector with the features of the cells. transformers makes them at full resolution
after every layer, of all queries; but the layers before the last only ask at which cells of a coarse map a logit is
negative, and bringing to another size is linear as the product is: for features $F$, their reduction $R(F)$, the mask
projection $W, b$ and a query's vector $e$

    $R(e^T (W F + b)) = (W^T e)^T R(F) + e^T b.$

So features are reduced once per level, and the projection is applied to queries instead of cells. Maps keep their
channels last, as the layers of single cells want them.

Source: Cheng et al. 2022, Mask2Former; the same function as in transformers, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from segros_eval.benchmarks.geneval.detector.attention import gathered_attention
from segros_eval.benchmarks.geneval.detector.swin import ROWS_AT_ONCE

__all__ = ["PixelFeatures", "decoded_queries", "group_terms", "mask_logits", "pixel_features"]


class PixelFeatures(NamedTuple):
    """What the pixel decoder makes of an image.

    Attributes:
        levels: [B, height, width, D] of the three coarse levels, the coarsest first.
        cells: [B, height, width, D] of the finest level, before the mask projection.
    """

    levels: list[Tensor]
    cells: Tensor


def pixel_features(decoder: Any, maps: Sequence[Tensor]) -> PixelFeatures:
    """Return the pixel decoder's features.

    Args:
        decoder: A `Mask2FormerPixelDecoder` of transformers with one level beside the three that attend.
        maps: [B, height, width, D] of the backbone's four stages, the finest first.
    """
    finest, *coarse = maps
    projected = [_projected(layer, of) for layer, of in zip(decoder.input_projections, reversed(coarse), strict=True)]
    shapes = [(of.shape[1], of.shape[2]) for of in projected]
    positions = torch.cat(
        [
            _positions(decoder.position_embedding, *shape) + decoder.level_embed[level]
            for level, shape in enumerate(shapes)
        ]
    )
    states = torch.cat([of.flatten(1, 2) for of in projected], dim=1)
    centres = torch.cat([_centres(*shape) for shape in shapes])
    for layer in decoder.encoder.layers:
        attended = gathered_attention(layer.self_attn, states, positions=positions, centres=centres, shapes=shapes)
        states = layer.self_attn_layer_norm(attended.add_(states))
        for part in states.view(-1, states.shape[-1]).split(ROWS_AT_ONCE):
            part.copy_(layer.final_layer_norm(layer.fc2(layer.fc1(part).relu_()).add_(part)))
    levels = [
        level.unflatten(1, shape)
        for level, shape in zip(states.split([height * width for height, width in shapes], 1), shapes, strict=True)
    ]
    lateral, output = decoder.lateral_convolutions[-1], decoder.output_convolutions[-1]
    enlarged = functional.interpolate(_channels_first(levels[-1]), size=finest.shape[1:3], mode="bilinear")
    summed = _channels_first(_projected(lateral, finest)).add_(enlarged)
    convolution, norm, _ = output
    convolved = convolution(summed).permute(0, 2, 3, 1).contiguous()
    scale, shift = group_terms(norm, convolved)
    return PixelFeatures(levels, torch.addcmul(shift, convolved, scale, out=convolved).relu_())


def decoded_queries(module: Any, features: PixelFeatures, mask_projection: Any) -> Tensor:
    """Return the queries behind the last layer, normalised, [B, Q, D].

    Args:
        module: A `Mask2FormerTransformerModule` of transformers.
        features: The pixel decoder's.
        mask_projection: The pixel decoder's last layer.
    """
    decoder, num_images = module.decoder, len(features.cells)
    finest = _channels_first(features.cells)
    reduced, values, keys = [], [], []
    for level, of in enumerate(features.levels):
        size = (of.shape[1], of.shape[2])
        small = functional.interpolate(finest, size=size, mode="bilinear")
        reduced.append(small.permute(0, 2, 3, 1))
        values.append(of.flatten(1, 2) + module.level_embed.weight[level])
        keys.append(values[-1] + _positions(module.position_embedder, *size))
    places = module.queries_embedder.weight.expand(num_images, -1, -1)
    states = module.queries_features.weight.expand(num_images, -1, -1)
    normed = decoder.layernorm(states)
    for index, layer in enumerate(decoder.layers):
        level = index % len(reduced)
        seen = mask_logits(module, normed, reduced[level], mask_projection).flatten(2) >= 0
        # A query that sees nothing attends to all.
        seen |= ~seen.any(-1, keepdim=True)
        attended = _attended(layer.cross_attn, states + places, keys[level], values[level], seen)
        states = layer.cross_attn_layer_norm(states + attended)
        states = layer.self_attn_layer_norm(states + _among_themselves(layer.self_attn, states, places))
        states = layer.final_layer_norm(states + layer.fc2(layer.activation_fn(layer.fc1(states))))
        normed = decoder.layernorm(states)
    return normed


def mask_logits(module: Any, queries: Tensor, cells: Tensor, mask_projection: Any) -> Tensor:
    """Return the mask logits of queries, [B, Q, height, width].

    Args:
        module: See `decoded_queries`.
        queries: [B, Q, D], normalised.
        cells: [B, height, width, D] before the mask projection.
        mask_projection: See `decoded_queries`.
    """
    vectors = module.decoder.mask_predictor.mask_embedder(queries)
    constant = vectors @ mask_projection.bias
    vectors = vectors @ mask_projection.weight.flatten(1)
    logits = torch.baddbmm(constant[..., None], vectors, cells.flatten(1, 2).transpose(1, 2))
    return logits.unflatten(-1, cells.shape[1:3])


def group_terms(norm: Any, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a GroupNorm multiplies cells by and what it adds, [B, 1, 1, D] each.

    torch's own way with channels that come last takes the difference of large sums, which costs digits. Here a group's
    variance is the mean of its channels' variances and the variance of their means.

    Args:
        norm: The GroupNorm.
        cells: [B, height, width, D].
    """
    rows = cells.flatten(1, 2)
    means = rows.mean(1)
    squares = [(part - means[:, None]).square_().sum(1) for part in rows.split(ROWS_AT_ONCE, 1)]
    variances = torch.stack(squares).sum(0) / rows.shape[1]
    of_channels, within = (given.unflatten(-1, (norm.num_groups, -1)) for given in (means, variances))
    centre = of_channels.mean(-1, keepdim=True)
    variance = (within + (of_channels - centre).square()).mean(-1, keepdim=True)
    scale = (variance + norm.eps).rsqrt().expand_as(of_channels).flatten(1) * norm.weight
    shift = norm.bias - centre.expand_as(of_channels).flatten(1) * scale
    return scale[:, None, None], shift[:, None, None]


def _attended(attention: Any, queries: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
    """Return what [B, Q, D] queries take from those of [B, T, D] keys that [B, Q, T] says they see."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, key, value = (
        functional.linear(given, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for given, weight, bias in zip((queries, keys, values), weights, biases, strict=True)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, seen[:, None])
    projected: Tensor = attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return projected


def _among_themselves(attention: Any, states: Tensor, places: Tensor) -> Tensor:
    mixed, _ = attention(states.transpose(0, 1), position_embeddings=places.transpose(0, 1))
    attended: Tensor = mixed.transpose(0, 1)
    return attended


def _projected(layer: Any, cells: Tensor) -> Tensor:
    """Return [B, height, width, D] behind a convolution of single cells and its norm."""
    convolution, norm = layer
    projected = functional.linear(cells, convolution.weight.flatten(1), convolution.bias)
    scale, shift = group_terms(norm, projected)
    return torch.addcmul(shift, projected, scale, out=projected)


def _channels_first(cells: Tensor) -> Tensor:
    """Return a view, [B, D, height, width] of [B, height, width, D]."""
    return cells.permute(0, 3, 1, 2)


def _centres(height: int, width: int) -> Tensor:
    """Return x and y of the centres of a level's cells in 0..1, [height width, 2]."""
    down, across = ((torch.arange(side) + 0.5) / side for side in (height, width))
    return torch.stack([across.expand(height, width), down[:, None].expand(height, width)], dim=-1).flatten(0, 1)


@lru_cache(maxsize=16)
@torch.inference_mode(mode=False)
def _positions(embedding: Any, height: int, width: int) -> Tensor:
    """Return the sines of positions, [height width, D]."""
    found: Tensor = embedding(torch.Size((1, 1, height, width)), torch.device("cpu"), torch.float32)
    return found[0].flatten(1).T.contiguous()
