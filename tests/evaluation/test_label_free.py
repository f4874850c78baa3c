# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Measures without labels on embeddings whose figures are known."""

import pytest
import torch
from torch import Tensor

from torchgeo_cmid.evaluation import (
    cell_rank,
    correspondence_accuracy,
    effective_rank,
    mean_cosine,
    normalised_std,
    same_ground,
)
from torchgeo_cmid.metrics import RankMe
from torchgeo_cmid.transforms import cell_grid

SIZE, CELL = 128, 32


def grid(dx: float = 0, dy: float = 0, zoom: float = 1, flip: bool = False) -> Tensor:
    """Cells of a view that lies dx, dy pixels from the patch, (1, 4, 4, 2)."""
    matrix = torch.tensor([[zoom, 0, -zoom * dx], [0, zoom, -zoom * dy], [0, 0, 1.0]])
    if flip:
        mirror = torch.tensor([[-1, 0, SIZE - 1.0], [0, 1, 0], [0, 0, 1]])
        matrix = mirror @ matrix
    return cell_grid(matrix[None], SIZE, (4, 4))


def ground(cells: Tensor, dim: int = 64) -> Tensor:
    """Features that tell where a cell lies and nothing else, (B, D, h, w)."""
    generator = torch.Generator().manual_seed(0)
    frequencies = torch.randn(2, dim, generator=generator) / 40
    phases = cells @ frequencies
    return torch.cat([phases.cos(), phases.sin()], dim=-1).permute(0, 3, 1, 2)


class TestSameGround:
    def test_equal_views(self) -> None:
        index, there = same_ground((grid(), grid()))
        assert index.tolist() == [list(range(16))]
        assert there.all()

    @pytest.mark.parametrize(('shift', 'number'), [(15, 16), (17, 12), (32, 12)])
    def test_within_half_a_cell(self, shift: float, number: int) -> None:
        """Beyond half a cell the last column shows what the other view has not."""
        index, there = same_ground((grid(dx=shift), grid()))
        assert int(there.sum()) == number
        expected = torch.arange(16).view(4, 4)
        if shift > 16:
            expected = expected[:, [1, 2, 3, 3]]
        assert index.view(4, 4).equal(expected)

    def test_between_four_cells(self) -> None:
        """15 px each way are 21 px from any centre: there is no such cell."""
        assert not same_ground((grid(15, 15), grid()))[1].any()

    def test_cell_of_the_other_view_counts(self) -> None:
        """Zoomed by 2 its cells have 16 px: centres 11 px apart are too far."""
        assert int(same_ground((grid(), grid(zoom=2)))[1].sum()) == 0
        assert int(same_ground((grid(zoom=2), grid()))[1].sum()) == 16
        assert int(same_ground((grid(8, 8), grid(zoom=2)))[1].sum()) == 4

    def test_flip(self) -> None:
        index, there = same_ground((grid(flip=True), grid()))
        assert there.all()
        assert index.view(4, 4).equal(torch.arange(16).view(4, 4).flip(1))

    def test_single_cell(self) -> None:
        single = cell_grid(torch.eye(3)[None], 32, (1, 1))
        with pytest.raises(ValueError, match='1 x 1 cells'):
            same_ground((single, single))


class TestCorrespondence:
    @pytest.mark.parametrize(
        'other', [grid(), grid(flip=True), grid(dx=32), grid(dx=5, dy=-6)]
    )
    def test_features_of_the_ground(self, other: Tensor) -> None:
        grids = grid(), other
        maps = ground(grids[0]), ground(grids[1])
        assert correspondence_accuracy(maps, grids) == 1

    def test_features_of_the_view(self) -> None:
        """Features of the position in the view find no cell of a shifted view."""
        maps = ground(grid()), ground(grid())
        assert correspondence_accuracy(maps, (grid(), grid(dx=32))) == 0

    def test_half_of_the_cells(self) -> None:
        """The features of two rows of one view are the opposite of what they were."""
        first, second = ground(grid()), ground(grid())
        first[:, :, :2] = -first[:, :, :2]
        grids = grid(), grid()
        assert correspondence_accuracy((first, second), grids) == 0.5

    def test_chance(self) -> None:
        torch.manual_seed(0)
        maps = torch.randn(500, 32, 4, 4), torch.randn(500, 32, 4, 4)
        grids = grid().expand(500, -1, -1, -1), grid().expand(500, -1, -1, -1)
        found = float(correspondence_accuracy(maps, grids))
        assert found == pytest.approx(1 / 16, abs=0.01)

    def test_no_overlap(self) -> None:
        maps = ground(grid()), ground(grid(dx=500))
        with pytest.raises(ValueError, match='no cell'):
            correspondence_accuracy(maps, (grid(), grid(dx=500)))


class TestRank:
    @pytest.mark.parametrize(('number', 'dim'), [(100, 16), (10, 64)])
    def test_as_rank_me(self, number: int, dim: int) -> None:
        torch.manual_seed(0)
        features = torch.randn(number, dim) * torch.exp(-0.1 * torch.arange(dim))
        metric = RankMe()
        metric.update(features)
        expected = float(metric.compute())
        assert effective_rank(features) == pytest.approx(expected, rel=1e-4)

    def test_cells(self) -> None:
        """Of one image all cells are alike, in the other 4 directions are as strong."""
        maps = torch.zeros(2, 8, 4, 4)
        maps[0, 0] = 1
        maps[1, :4] = torch.eye(4)[:, None]
        assert cell_rank(maps) == pytest.approx((1 + 4) / 2, rel=1e-4)


class TestDirections:
    def test_all_alike(self) -> None:
        features = torch.tensor([[3.0, 4.0]]) * torch.arange(1, 6)[:, None]
        assert mean_cosine(features) == pytest.approx(1)
        assert normalised_std(features) == pytest.approx(0, abs=1e-6)

    def test_orthogonal(self) -> None:
        assert mean_cosine(7 * torch.eye(5)) == pytest.approx(0, abs=1e-6)

    def test_opposite(self) -> None:
        """Of 3 pairs one has cosine 1, two have -1."""
        features = torch.tensor([[1.0, 0], [1, 0], [-2, 0]])
        assert mean_cosine(features) == pytest.approx(-1 / 3)

    def test_evenly_spread(self) -> None:
        torch.manual_seed(0)
        features = torch.randn(4000, 25)
        assert normalised_std(features) == pytest.approx(1 / 5, rel=0.01)
        assert mean_cosine(features) == pytest.approx(0, abs=1e-3)
