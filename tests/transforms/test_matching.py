# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Position matching against the published implementation and by brute force."""

import pytest
import torch
from torch import Tensor

from tests.goldens import load_golden
from torchgeo_cmid.distributed import GlobalCounts
from torchgeo_cmid.transforms import (
    cell_grid,
    find_matches,
    match_cells,
    take_matches,
    valid_cells,
)


def take(features: Tensor, index: Tensor) -> Tensor:
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))


class TestMatchCells:
    def test_golden(self) -> None:
        golden = load_golden('matching')
        own = golden['grid_own'].view(3, 7, 7, 2)
        other = golden['grid_other'].view(3, 7, 7, 2)
        index_own, index_other = match_cells(own, other, int(golden['num_matches']))
        ours = torch.cat(
            [
                take(golden['features_own'], index_own),
                take(golden['features_other'], index_other),
            ],
            dim=2,
        )
        theirs = torch.cat([golden['matched_own'], golden['matched_other']], dim=2)
        for a, b in zip(ours, theirs, strict=True):  # the order means nothing
            assert {tuple(row) for row in a.tolist()} == {
                tuple(row) for row in b.tolist()
            }

    def test_brute_force(self) -> None:
        own, other = torch.rand(2, 2, 3, 4, 2)
        index_own, index_other = match_cells(own, other, 5)
        for image in range(2):
            pairs = []
            for i, a in enumerate(own[image].flatten(0, 1)):
                distances = (other[image].flatten(0, 1) - a).norm(dim=1)
                pairs.append((float(distances.min()), i, int(distances.argmin())))
            expected = {(i, j) for _, i, j in sorted(pairs)[:5]}
            rows = zip(
                index_own[image].tolist(), index_other[image].tolist(), strict=True
            )
            assert set(rows) == expected

    def test_no_more_than_cells(self) -> None:
        grid = torch.rand(1, 2, 2, 2)
        assert match_cells(grid, grid, 20)[0].shape == (1, 4)


class TestTakeMatches:
    def test_cells_of_fill_are_in_no_pair(self) -> None:
        torch.manual_seed(0)
        grids = torch.rand(2, 3, 4, 4, 2)
        # features that say which cell they are
        cells = torch.arange(48.0).view(3, 1, 4, 4)
        valid = torch.ones(2, 3, 1, 32, 32, dtype=torch.bool)
        valid[0, 0, :, :, :16] = False  # half of the own cells of the first patch
        valid[1, 1, :, 8:, :] = False  # all but a row of the other's of the second
        valid[:, 2] = False  # everything of the third
        matches = find_matches(tuple(grids), 12, tuple(valid))
        own, other = take_matches((cells, cells), matches)
        assert matches.number == len(own)
        pairs = torch.cat([own, other], dim=1).int().tolist()
        assert len(pairs) == 8 + 12
        assert all(i % 4 >= 2 for i, _ in pairs[:8])
        assert all(16 <= j < 20 for _, j in pairs[8:])
        distances = torch.cdist(grids[0, 1].view(-1, 2), grids[1, 1, :1].view(-1, 2))
        nearest = distances.min(dim=1).indices
        assert all(nearest[i - 16] == j - 16 for i, j in pairs[8:])

    def test_all_valid(self) -> None:
        grids = torch.rand(2, 3, 4, 4, 2)
        maps = torch.rand(2, 3, 5, 4, 4)
        valid = torch.ones(2, 3, 1, 32, 32, dtype=torch.bool)
        matches = (
            find_matches(tuple(grids), 5),
            find_matches(tuple(grids), 5, tuple(valid)),
        )
        assert matches[0].number == matches[1].number == 3 * 5
        plain, masked = (take_matches(tuple(maps), match) for match in matches)
        assert torch.equal(plain[0], masked[0])
        assert torch.equal(plain[1], masked[1])

    @pytest.mark.parametrize('pixels', [0, 16 * 64])
    def test_too_few_pairs_weigh_nothing(self, pixels: int) -> None:
        """None, or one: a batch norm needs two."""
        valid = torch.zeros(1, 1, 128, 128, dtype=torch.bool)
        valid[..., : pixels // 32, :32] = True
        grid = torch.rand(1, 4, 4, 2)
        maps = torch.rand(1, 5, 4, 4)
        matches = find_matches((grid, grid), 6, (valid, valid))
        own, _ = take_matches((maps, maps), matches)
        assert GlobalCounts({'pairs': matches.number}).share('pairs') == 0
        assert own.shape == (2, 5)

    def test_half_of_a_cell(self) -> None:
        valid = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
        valid[..., :16, :32] = True  # half of the first cell
        valid[..., :16, 32:] = True
        valid[..., 15, 63] = False  # a pixel less than half of the second
        assert valid_cells(valid, (2, 2)).tolist() == [[[True, False], [False, False]]]


class TestCellGrid:
    def test_centers_of_an_untouched_view(self) -> None:
        grid = cell_grid(torch.eye(3)[None], 224, (7, 7))
        assert grid.shape == (1, 7, 7, 2)
        expected = torch.arange(7) * 32 + 15.5
        torch.testing.assert_close(grid[0, :, 0, 0], expected)
        torch.testing.assert_close(grid[0, 0, :, 1], expected)

    def test_offset_of_the_crop_counts(self) -> None:
        """The published code loses it: a fraction was added to pixels."""
        transform = torch.tensor([[[1.0, 0, -100], [0, 1, -50], [0, 0, 1]]])
        grid = cell_grid(transform, 64, (2, 2))
        torch.testing.assert_close(grid[0, 0, 0], torch.tensor([65.5, 115.5]))
