# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What can be told of features without labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..metrics import RankMe

Pair = tuple[Tensor, Tensor]


def same_ground(grids: Pair) -> tuple[Tensor, Tensor]:
    """Find which cell of another view shows the ground of each cell.

    That is the one whose centre is nearest, if it lies within half a cell of the other
    view. What lies outside of the other view, or halfway between its cells, has none:
    about a fifth of the cells that lie in it.

    Args:
        grids: Centres of the cells of one view and of the other as (y, x), (B, h, w, 2)
            each, same frame: see :func:`~torchgeo_cmid.transforms.cell_grid`.

    Returns:
        Index of the cell in the flattened map of the other view, (B, h w), and whether
        there is one, (B, h w) bool.

    Raises:
        ValueError: If the other view has a single row or column of cells.
    """
    own, other = (grid.double() for grid in grids)
    if min(other.shape[1:3]) < 2:
        raise ValueError(
            f'a map of {other.shape[1]} x {other.shape[2]} cells has no cell to tell '
            'from others: larger images are needed'
        )
    rows = (other[:, 1, 0] - other[:, 0, 0]).norm(dim=-1)  # (B,)
    columns = (other[:, 0, 1] - other[:, 0, 0]).norm(dim=-1)
    reach = torch.minimum(rows, columns) / 2
    distances = torch.cdist(
        own.flatten(1, 2),
        other.flatten(1, 2),
        compute_mode='donot_use_mm_for_euclid_dist',
    )  # (B, h w, h w)
    nearest, index = distances.min(dim=2)
    # equal grids are apart by what rounding leaves
    return index, nearest <= reach[:, None] * (1 + 1e-6)


def correspondence(maps: Pair, grids: Pair) -> tuple[Tensor, Tensor]:
    """Count the cells that are most similar to the cell that shows the same ground.

    Of each cell of one view that has such a cell, see :func:`same_ground`, the nearest
    neighbour by cosine is sought among all h w cells of the other view of its patch, so
    that chance finds 1 / (h w).

    Args:
        maps: Features of one view and of the other, (B, D, h, w) each.
        grids: Centres of their cells, (B, h, w, 2) each, same frame.

    Returns:
        Number of cells whose nearest neighbour is that cell, (), and of those that have
        one, ().

    Raises:
        ValueError: If a view has a single row or column of cells.
    """
    index, there = same_ground(grids)
    one, other = (F.normalize(each.float().flatten(2), dim=1) for each in maps)
    found = (one.mT @ other).argmax(dim=2)  # (B, h w)
    return ((found == index) & there).sum(), there.sum()


def correspondence_accuracy(maps: Pair, grids: Pair) -> Tensor:
    """Share of the cells whose nearest neighbour shows the same ground.

    Args:
        maps: As of :func:`correspondence`.
        grids: As of it.

    Returns:
        The share over all patches and both directions, ().

    Raises:
        ValueError: If a view has a single row or column of cells, or if no cell has one
            of the same ground.
    """
    forth = correspondence(maps, grids)
    back = correspondence(maps[::-1], grids[::-1])
    total = forth[1] + back[1]
    if not total:
        raise ValueError('no cell of one view shows the ground of a cell of the other')
    return (forth[0] + back[0]) / total


def effective_rank(features: Tensor) -> Tensor:
    """Effective rank of features: see :class:`~torchgeo_cmid.metrics.RankMe`.

    Args:
        features: Features, (N, D).

    Returns:
        The rank, (), between 1 and min(N, D).
    """
    metric = RankMe(sync_on_compute=False).to(features.device)
    # a matrix has the rank of its transpose: the shorter side is the cheaper one
    metric.update(features if features.shape[0] > features.shape[1] else features.mT)
    return metric.compute()


def cell_rank(maps: Tensor) -> Tensor:
    """Effective rank of the cells within each image, mean over images.

    Args:
        maps: Maps of features, (B, D, h, w).

    Returns:
        The mean rank, (), between 1 and min(D, h w).
    """
    return torch.stack([effective_rank(each.T) for each in maps.flatten(2)]).mean()


def mean_cosine(features: Tensor) -> Tensor:
    """Mean cosine of all pairs of features: 1 where all point the same way.

    Args:
        features: Features, (N, D), N > 1.

    Returns:
        The mean, ().
    """
    x = F.normalize(features.double(), dim=1)
    number = len(x)
    # |sum of all|^2 holds each pair twice, and N ones
    total = x.sum(dim=0).square().sum() - x.square().sum()
    return (total / (number * (number - 1))).float()


def normalised_std(features: Tensor) -> Tensor:
    """Standard deviation of normalised features, mean over channels.

    It is 0 where all are the same, and 1 / sqrt(D) where they point evenly in all
    directions. Source: section 4.1 of `SimSiam <https://arxiv.org/abs/2011.10566>`__.

    Args:
        features: Features, (N, D), N > 1.

    Returns:
        The mean, ().
    """
    return F.normalize(features.double(), dim=1).std(dim=0).mean().float()
