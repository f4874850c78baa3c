# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Masks of cells and the spectral mean."""

import torch

from torchgeo_cmid.transforms import (
    expand_mask,
    fill_with_spectral_mean,
    random_cell_mask,
)


class TestRandomCellMask:
    def test_share(self) -> None:
        mask = random_cell_mask(16, 7, 0.6)
        assert mask.shape == (16, 7, 7)
        assert (mask.sum(dim=(1, 2)) == 30).all()

    def test_drawn_for_each_image(self) -> None:
        masks = random_cell_mask(64, 7, 0.6).flatten(1)
        assert len(masks.unique(dim=0)) > 60
        # each cell is masked about as often as any other
        share = random_cell_mask(4000, 7, 0.6).float().mean(dim=0)
        assert (share - 30 / 49).abs().max() < 0.05


class TestExpandMask:
    def test_cells(self) -> None:
        mask = torch.tensor([[[True, False], [False, True]]])
        expanded = expand_mask(mask, 8)
        assert expanded.shape == (1, 1, 8, 8)
        assert expanded[0, 0, :4, :4].all()
        assert not expanded[0, 0, :4, 4:].any()


class TestFillWithSpectralMean:
    def test_mean_is_over_all_pixels(self) -> None:
        view = torch.randn(2, 3, 8, 8)
        mask = expand_mask(random_cell_mask(2, 2, 0.5), 8)
        masked = fill_with_spectral_mean(view, mask)
        mean = view.mean(dim=(2, 3))
        for image in range(2):
            for band in range(3):
                hidden = masked[image, band][mask[image, 0].bool()]
                torch.testing.assert_close(hidden, mean[image, band].expand(32))
        seen = ~mask.bool().expand_as(view)
        assert torch.equal(masked[seen], view[seen])
