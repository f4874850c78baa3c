# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Position matching against the published implementation and by brute force."""

import torch
from torch import Tensor

from tests.goldens import load_golden
from torchgeo_cmid.transforms import cell_grid, match_cells


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
