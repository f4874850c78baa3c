# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where the cells of a view lie in their patch, and which cells of two views match."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
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


def match_cells(
    own: Tensor,
    other: Tensor,
    num_matches: int,
    candidates: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Pair the cells of two views that lie closest to each other.

    Each cell of *own* is paired with its nearest cell of *other*, which may serve
    several times; the closest pairs are kept. Their order means nothing.

    Args:
        own: Centres of the cells of one view, (B, h, w, 2).
        other: Centres of the cells of the other view, (B, h, w, 2), same frame.
        num_matches: Number of pairs to keep; at most h w are.
        candidates: The cells of *own* and of *other* that may be paired, (B, h, w) bool
            each. None: all. Where there are too few, others fill up.

    Returns:
        Indices of the paired cells in the flattened maps of *own* and of *other*,
        each (B, min(num_matches, h w)).
    """
    distances = torch.cdist(
        own.flatten(1, 2),
        other.flatten(1, 2),
        compute_mode='donot_use_mm_for_euclid_dist',
    )  # (B, h w, h w)
    if candidates is not None:
        possible = (
            candidates[0].flatten(1)[:, :, None] & candidates[1].flatten(1)[:, None]
        )
        distances = distances.where(possible, torch.inf)
    nearest, index_other = distances.min(dim=2)
    num_matches = min(num_matches, nearest.shape[1])
    index_own = nearest.topk(num_matches, dim=1, largest=False).indices
    return index_own, index_other.gather(1, index_own)


def valid_cells(valid: Tensor, cells: tuple[int, int]) -> Tensor:
    """Find the cells at least half of whose pixels are valid.

    Args:
        valid: Valid pixels of a view, (B, 1, S, S) bool.
        cells: Height h and width w of the feature map in cells.

    Returns:
        Valid cells, (B, h, w) bool.
    """
    share = F.adaptive_avg_pool2d(valid.float(), cells)
    return share[:, 0] > 0.5 - 1e-4  # the mean of ones and zeros is not exact


class Matches(NamedTuple):
    """Pairs of cells of two views."""

    #: Cells of either view in their flattened maps, (B, n) each.
    own: Tensor
    other: Tensor
    #: Which of the pairs count, (B n,) bool. None: all do.
    kept: Tensor | None
    #: Number of pairs that count, ().
    number: Tensor


def find_matches(
    grids: tuple[Tensor, Tensor],
    num_matches: int,
    valid: tuple[Tensor, Tensor] | None = None,
) -> Matches:
    """Find the cells of two views that lie closest to each other.

    Args:
        grids: Centres of the cells of one view and of the other, (B, h, w, 2) each,
            same frame.
        num_matches: Number of pairs to find for each patch; at most h w are.
        valid: Valid pixels of the views, (B, 1, S, S) bool each: a cell with less than
            half of them valid is in no pair. None: all are.

    Returns:
        The pairs. Fewer than two are none, as there is no batch norm over them: two
        others, which do not count, take their place.
    """
    if valid is None:
        own, other = match_cells(*grids, num_matches)
        return Matches(own, other, None, torch.tensor(own.numel(), device=own.device))
    h_w = (grids[0].shape[1], grids[0].shape[2])
    candidates = valid_cells(valid[0], h_w), valid_cells(valid[1], h_w)
    own, other = match_cells(*grids, num_matches, candidates)
    kept = candidates[0].flatten(1).gather(1, own)
    kept = (kept & candidates[1].flatten(1).gather(1, other)).flatten()  # (B n,)
    count = kept.sum()
    enough = count >= 2
    first = torch.arange(len(kept), device=kept.device) < 2
    return Matches(own, other, torch.where(enough, kept, first), count * enough)


def take_matches(
    maps: tuple[Tensor, Tensor], matches: Matches
) -> tuple[Tensor, Tensor]:
    """Take the features of cells that are paired.

    Args:
        maps: Features of one view and of the other, (B, D, h, w) each.
        matches: The pairs.

    Returns:
        Features of the paired cells, (N, D) each.
    """
    own, other = _take_cells(maps[0], matches.own), _take_cells(maps[1], matches.other)
    if matches.kept is None:
        return own, other
    return own[matches.kept], other[matches.kept]


def _take_cells(features: Tensor, index: Tensor) -> Tensor:
    """Take cells of a map, (B, D, h, w), at indices (B, n), as (B n, D)."""
    cells = features.flatten(2).mT  # (B, h w, D)
    index = index[..., None].expand(-1, -1, cells.shape[-1])
    return cells.gather(1, index).flatten(0, 1)
