# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which cells of a view the student does not see, and what it sees instead."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_cell_mask(
    batch_size: int, cells: int, ratio: float, device: torch.device | None = None
) -> Tensor:
    """Mask a share of the cells, drawn anew for each image.

    Args:
        batch_size: Number of images B.
        cells: Number of cells along each side of a view.
        ratio: Share of the cells that is masked, rounded up to whole cells.
        device: Device on which to draw.

    Returns:
        Masks, (B, cells, cells) bool, True = masked.
    """
    masked = math.ceil(ratio * cells**2)
    order = torch.rand(batch_size, cells**2, device=device).argsort(dim=1)
    return (order < masked).view(batch_size, cells, cells)


def expand_mask(mask: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Enlarge a mask of cells to pixels or to the cells of a feature map.

    Args:
        mask: Mask of cells, (B, n, n) bool, True = masked.
        size: Height and width to enlarge to.

    Returns:
        Mask, (B, 1, height, width) float, 1 where masked.
    """
    return F.interpolate(mask[:, None].float(), size, mode='nearest')


def fill_with_spectral_mean(view: Tensor, mask: Tensor) -> Tensor:
    """Set masked pixels to their image's mean of each band ("spectral mean").

    Args:
        view: Normalised views, (B, C, S, S).
        mask: Mask of pixels, (B, 1, S, S), 1 where masked.

    Returns:
        Masked views, (B, C, S, S); the mean is over all pixels of the view.
    """
    return torch.where(mask.bool(), view.mean(dim=(2, 3), keepdim=True), view)
