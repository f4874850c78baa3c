# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where the cells of a view lie in their patch, and which cells of two views match."""

import torch
from torch import Tensor


def cell_grid(transform: Tensor, size: int, cells: tuple[int, int]) -> Tensor:
    """Locate the centres of a view's cells in the pixel frame of the patch.

    Pixel centres are integers: cell i of 32 pixels is centred at 32 i + 15.5 in the
    view. The patch frame is that before crop and flip.

    Args:
        transform: Matrices that map pixels (x, y, 1) of the patch to pixels of the
            view, (B, 3, 3), such as kornia's ``transform_matrix``.
        size: Height and width S of the view in pixels.
        cells: Height h and width w of the feature map in cells.

    Returns:
        Centres as (y, x) in pixels of the patch, (B, h, w, 2).
    """
    h, w = cells
    y = (torch.arange(h).to(transform) + 0.5) * (size / h) - 0.5
    x = (torch.arange(w).to(transform) + 0.5) * (size / w) - 0.5
    y, x = torch.meshgrid(y, x, indexing='ij')
    centers = torch.stack([x, y, torch.ones_like(x)]).flatten(1)  # (3, h w)
    points: Tensor = torch.linalg.solve(
        transform, centers.expand(len(transform), -1, -1)
    )
    points = points[:, :2] / points[:, 2:]  # (B, 2, h w)
    return points.flip(1).mT.reshape(-1, h, w, 2)


def match_cells(own: Tensor, other: Tensor, num_matches: int) -> tuple[Tensor, Tensor]:
    """Pair the cells of two views that lie closest to each other.

    Each cell of *own* is paired with its nearest cell of *other*, which may serve
    several times; the closest pairs are kept. Their order means nothing.

    Args:
        own: Centres of the cells of one view, (B, h, w, 2).
        other: Centres of the cells of the other view, (B, h, w, 2), same frame.
        num_matches: Number of pairs to keep; at most h w are.

    Returns:
        Indices of the paired cells in the flattened maps of *own* and of *other*,
        each (B, min(num_matches, h w)).
    """
    distances = torch.cdist(
        own.flatten(1, 2),
        other.flatten(1, 2),
        compute_mode='donot_use_mm_for_euclid_dist',
    )  # (B, h w, h w)
    nearest, index_other = distances.min(dim=2)
    num_matches = min(num_matches, nearest.shape[1])
    index_own = nearest.topk(num_matches, dim=1, largest=False).indices
    return index_own, index_other.gather(1, index_own)
