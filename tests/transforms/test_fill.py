# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Fill pixels: what stands in their place, and where views have them."""

import kornia.augmentation as K
import pytest
import torch
from torch import nn

from torchgeo_cmid.transforms import (
    MultispectralPhotometric,
    RGBPhotometric,
    Views,
    draws,
    fill_with_valid_mean,
    photometric,
    warp_valid,
)


class TestFillWithValidMean:
    @pytest.mark.parametrize('fill', [0, 1e38, torch.nan, torch.inf])
    def test_mean_is_over_valid_pixels(self, fill: float) -> None:
        torch.manual_seed(0)
        image = torch.randn(2, 3, 8, 8)
        valid = torch.rand(2, 1, 8, 8) < 0.5
        filled = fill_with_valid_mean(image.where(valid, fill), valid)
        seen = valid.expand_as(image)
        assert torch.equal(filled[seen], image[seen])
        for i in range(2):
            for band in range(3):
                mean = image[i, band][valid[i, 0]].mean()
                inside = filled[i, band][~valid[i, 0]]
                torch.testing.assert_close(inside, mean.expand_as(inside))
        means = filled.mean(dim=(2, 3))
        torch.testing.assert_close(means[0, 0], image[0, 0][valid[0, 0]].mean())

    def test_nothing_valid(self) -> None:
        image = torch.full((1, 2, 4, 4), torch.nan)
        filled = fill_with_valid_mean(image, torch.zeros(1, 1, 4, 4).bool())
        assert torch.equal(filled, torch.zeros(1, 2, 4, 4))


class TestWarpValid:
    def test_untouched(self) -> None:
        valid = torch.rand(2, 1, 16, 16) < 0.5
        assert torch.equal(warp_valid(valid, torch.eye(3).expand(2, 3, 3), 16), valid)

    @pytest.mark.parametrize(('patch', 'size'), [(64, 64), (90, 64), (50, 64)])
    def test_no_pixel_mixed_with_fill_is_valid(self, patch: int, size: int) -> None:
        """Wherever resampling has mixed fill in, the pixel is invalid; else valid."""
        torch.manual_seed(0)
        valid = torch.rand(16, 1, patch, patch) > 0.02
        valid[0] = True
        image = (~valid).float().requires_grad_()
        (view, _), (transform, _), (warped, _) = Views(size, nn.Identity())(
            (image, image), (valid, valid)
        )
        assert torch.equal(warped, warp_valid(valid, transform, size))
        assert view[warped].max() <= 1e-3
        assert view[~warped].min() > 0
        assert warped[0].all()
        assert 0.5 < warped.float().mean() < 1

    def test_what_lies_outside_of_the_patch_is_invalid(self) -> None:
        torch.manual_seed(0)
        rotate = K.RandomRotation(45.0, p=1.0)
        image = torch.ones(4, 1, 32, 32)
        view = rotate(image)
        warped = warp_valid(image.bool(), rotate.transform_matrix, 32)
        assert view[warped].min() > 0.45
        assert view[~warped].max() < 0.55


class TestPhotometric:
    def test_noise_in_units_of_the_valid_pixels(self) -> None:
        torch.manual_seed(0)
        recipe = MultispectralPhotometric(2)
        recipe.augmentations['jitter'].p = 0.0
        recipe.augmentations['grey'].p = 0.0
        recipe.augmentations['blur'] = K.RandomGaussianBlur(7, (0.1, 0.1), p=1.0)
        valid = torch.rand(16, 1, 64, 64) < 0.3
        x = fill_with_valid_mean(torch.randn(16, 2, 64, 64) * 5 + 3, valid)
        noise = (recipe(x, valid) - x).std(dim=(1, 2, 3))
        noisy = noise[noise > 0.01]
        torch.testing.assert_close(
            noisy, torch.full_like(noisy, 0.5), rtol=0.05, atol=0
        )

    @pytest.mark.parametrize('offset', [0.0, 1000.0])
    def test_std_of_a_band_is_that_of_its_valid_pixels(
        self, offset: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Put together from parts of the batch, far from zero as well."""
        monkeypatch.setattr(draws, 'PART_BYTES', 3 * 2 * 32 * 32 * 4)
        torch.manual_seed(0)
        x = torch.randn(8, 2, 32, 32) * torch.arange(1, 9).view(8, 1, 1, 1) + offset
        valid = torch.rand(8, 1, 32, 32) < 0.3
        valid[2], valid[3] = False, True
        for pixels in (None, valid):
            std = photometric._band_std(x, pixels)
            seen = torch.ones_like(valid) if pixels is None else pixels
            for band in range(2):
                expected = x[:, band][seen[:, 0]].double().std().float()
                torch.testing.assert_close(
                    std[0, band, 0, 0], expected, rtol=2e-5, atol=0
                )

    @pytest.mark.parametrize('recipe', [RGBPhotometric(), MultispectralPhotometric(3)])
    def test_fill_does_not_count_in_the_contrast(self, recipe: nn.Module) -> None:
        """Valid pixels change as if fill were not there, whatever it holds."""
        recipe.augmentations['blur'] = K.RandomGaussianBlur(7, (0.1, 0.1), p=1.0)
        recipe.augmentations['jitter'].p = 1.0
        recipe.augmentations['noise'].p = 0.0
        torch.manual_seed(0)
        valid = torch.ones(8, 1, 32, 32, dtype=torch.bool)
        valid[:, :, :20] = False
        x = 0.3 * torch.rand(8, 3, 32, 32)
        known = valid.clone()
        known[:, :, :24] = False  # the blur reaches no further
        results = []
        for view in (fill_with_valid_mean(x, valid), x.where(valid, 0.9)):
            torch.manual_seed(1)
            results.append(recipe(view, valid)[known.expand(-1, 3, -1, -1)])
        torch.testing.assert_close(*results)
        torch.manual_seed(1)
        counted = recipe(x.where(valid, 0.9))[known.expand(-1, 3, -1, -1)]
        assert (counted - results[0]).abs().max() > 0.01

    def test_all_fill(self) -> None:
        x, valid = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8).bool()
        assert torch.isfinite(MultispectralPhotometric(3)(x, valid)).all()
