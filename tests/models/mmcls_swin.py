# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Swin-B as mmcls defines it, in plain functions on its own names of the tensors.

Written from the paper (https://arxiv.org/abs/2103.14030, sections 3.1 and 3.2) and from
what design.md says of mmcls; it shares no code with timm.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

DEPTHS = (2, 2, 18, 2)
HEADS = (4, 8, 16, 32)
WINDOW = 7


def forward_features(
    state: Mapping[str, Tensor],
    x: Tensor,
    after_stem: Callable[[Tensor], Tensor] = lambda tokens: tokens,
) -> Tensor:
    """Compute the last map, (B, 1024, h, w), of images, (B, 3, S, S).

    Args:
        state: A published backbone.
        x: The images.
        after_stem: Changes the tokens right after the patch embedding, (B, H, W, 128).
    """

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f'{name}.weight'], state.get(f'{name}.bias'))

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
        return F.layer_norm(x, weight.shape, weight, bias)

    def attend(name: str, x: Tensor, heads: int, shift: int) -> Tensor:
        batch, height, width, dim = x.shape
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        rows, columns = height // WINDOW, width // WINDOW
        windows = x.view(batch, rows, WINDOW, columns, WINDOW, dim).transpose(2, 3)
        windows = windows.reshape(-1, WINDOW**2, dim)
        q, k, v = (
            part.unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in linear(f'{name}.qkv', windows).chunk(3, dim=-1)
        )
        weights = q @ k.mT / (dim // heads) ** 0.5  # (windows, heads, 49, 49)
        table = state[f'{name}.relative_position_bias_table']
        index = state[f'{name}.relative_position_index']
        weights = weights + table[index.flatten()].view(49, 49, heads).movedim(-1, 0)
        if shift:
            weights = weights.unflatten(0, (batch, -1))
            region = regions(height, width, shift)  # (windows of an image, 49)
            apart = region[:, None, :] != region[:, :, None]
            weights = weights.masked_fill(apart[None, :, None], float('-inf'))
            weights = weights.flatten(0, 1)
        out = (weights.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        out = linear(f'{name}.proj', out)
        out = out.view(batch, rows, columns, WINDOW, WINDOW, dim).transpose(2, 3)
        out = out.reshape(batch, height, width, dim)
        return out.roll((shift, shift), (1, 2)) if shift else out

    x = F.conv2d(
        x,
        state['patch_embed.projection.weight'],
        state['patch_embed.projection.bias'],
        stride=4,
    )
    x = after_stem(norm('patch_embed.norm', x.movedim(1, -1)))  # (B, H, W, D)
    for stage, depth in enumerate(DEPTHS):
        for block in range(depth):
            name = f'stages.{stage}.blocks.{block}'
            # a map of a single window is not shifted
            shift = WINDOW // 2 if block % 2 and x.shape[1] > WINDOW else 0
            x = x + attend(
                f'{name}.attn.w_msa', norm(f'{name}.norm1', x), HEADS[stage], shift
            )
            hidden = F.gelu(linear(f'{name}.ffn.layers.0.0', norm(f'{name}.norm2', x)))
            x = x + linear(f'{name}.ffn.layers.1', hidden)
        if stage < 3:
            name = f'stages.{stage}.downsample'
            side = x.shape[1] // 2
            patches = F.unfold(x.movedim(-1, 1), kernel_size=2, stride=2).mT
            x = linear(f'{name}.reduction', norm(f'{name}.norm', patches))
            x = x.unflatten(1, (side, side))
    return norm('norm3', x).movedim(-1, 1)


def regions(height: int, width: int, shift: int) -> Tensor:
    """Number the parts of a rolled map that touched before; one row per window."""
    row = torch.zeros(height, dtype=torch.long)
    row[-WINDOW:-shift], row[-shift:] = 1, 2
    column = torch.zeros(width, dtype=torch.long)
    column[-WINDOW:-shift], column[-shift:] = 1, 2
    region = 3 * row[:, None] + column[None]
    windows = region.view(height // WINDOW, WINDOW, width // WINDOW, WINDOW)
    return windows.transpose(1, 2).reshape(-1, WINDOW**2)
