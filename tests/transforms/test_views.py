# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Views: where their cells lie, the range of their values, and the recipe chosen."""

import kornia.augmentation as K
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchgeo_cmid.transforms import (
    MultispectralPhotometric,
    RGBPhotometric,
    Views,
    cell_grid,
    default_views,
)


def coordinates(batch_size: int, height: int, width: int) -> Tensor:
    """Images whose first band is y and whose second is x, in pixels."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    return torch.stack([y, x]).float().expand(batch_size, -1, -1, -1)


class TestViews:
    @pytest.mark.parametrize(
        ('height', 'width', 'size', 'cells'),
        [(64, 64, 64, 2), (150, 150, 96, 3), (64, 64, 96, 6), (90, 130, 64, 4)],
    )
    def test_cells_point_at_the_same_ground(
        self, height: int, width: int, size: int, cells: int
    ) -> None:
        """The mean coordinate under a cell is the cell's, to half a pixel."""
        torch.manual_seed(0)
        patches = coordinates(32, height, width)
        views, transforms = Views(size, nn.Identity())((patches, patches))
        for view, transform in zip(views, transforms, strict=True):
            grid = cell_grid(transform, size, (cells, cells))
            ground = F.avg_pool2d(view, size // cells).permute(0, 2, 3, 1)
            assert (grid - ground).abs().max() < 0.5
        flipped = [bool((t[:, 0, 0] < 0).any()) for t in transforms]
        assert all(flipped)

    def test_drawn_for_each_image(self) -> None:
        patches = coordinates(16, 64, 64)
        _, transforms = Views(64, nn.Identity())((patches, patches))
        assert len(transforms[0].unique(dim=0)) == 16
        assert not torch.equal(*transforms)

    def test_strong_view_alone_changes_values(self) -> None:
        patches = torch.full((8, 3, 64, 64), 0.25)
        (weak, strong), _ = Views(64, RGBPhotometric())((patches, patches))
        torch.testing.assert_close(weak, patches)
        assert not torch.allclose(strong, patches)

    def test_two_seasons(self) -> None:
        first, second = torch.zeros(2, 2, 64, 64), torch.ones(2, 2, 64, 64)
        (weak, strong), _ = Views(64, nn.Identity())((first, second))
        assert (weak == 0).all()
        torch.testing.assert_close(strong, second)

    def test_double_precision(self) -> None:
        patches = torch.rand(2, 4, 64, 64, dtype=torch.float64)
        views = Views(64, MultispectralPhotometric(4))
        (weak, strong), (transform, _) = views((patches, patches))
        assert {weak.dtype, strong.dtype, transform.dtype} == {torch.float64}


def switch_off(photometric: nn.Module, *names: str) -> None:
    """Have no image chosen for some of what changes the values."""
    for name in names:
        photometric.augmentations[name].p = 0.0


class TestRGBPhotometric:
    def test_range_of_values(self) -> None:
        """Whatever the normalisation, the recipe works on values in 0..1."""
        mean, std = torch.tensor([0.34, 0.36, 0.33]), torch.tensor([0.14, 0.13, 0.14])
        values = torch.rand(32, 3, 32, 32)
        normalised = (values - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        torch.manual_seed(0)
        out = RGBPhotometric(mean, std)(normalised)
        redone = out * std.view(3, 1, 1) + mean.view(3, 1, 1)
        torch.manual_seed(0)
        torch.testing.assert_close(redone, RGBPhotometric()(values), rtol=0, atol=1e-5)
        # jitter, blur, solarize and grey stay within 0..1, noise has std 0.028 at most
        assert redone.min() > -0.2
        assert redone.max() < 1.2
        grey = (redone.amax(dim=1) - redone.amin(dim=1)).amax(dim=(1, 2)) < 1e-5
        assert 0 < grey.sum() < 32

    def test_given_views_stay(self) -> None:
        values = torch.rand(8, 3, 32, 32)
        before = values.clone()
        RGBPhotometric()(values)
        assert torch.equal(values, before)


class TestMultispectralPhotometric:
    def test_distribution(self) -> None:
        """Brightness stays within 0.6-1.4 times 0.9-1.1, and one in five is unmoved."""
        torch.manual_seed(0)
        photometric = MultispectralPhotometric(2)
        switch_off(photometric, 'noise', 'grey')
        out = photometric(torch.full((2000, 2, 4, 4), 1.0))[:, :, 0, 0]
        assert out.min() >= 0.6 * 0.9
        assert out.max() <= 1.4 * 1.1
        unmoved = ((out - 1).abs() < 1e-6).all(dim=1).float().mean()
        assert abs(unmoved - 0.2) < 0.03
        ratio = (out[:, 0] / out[:, 1]).sub(1).abs().max()
        assert 0.05 < ratio < 0.23

    def test_brightness_acts_on_values_before_normalisation(self) -> None:
        torch.manual_seed(0)
        mean, std = torch.tensor([100.0, 10.0]), torch.tensor([20.0, 5.0])
        photometric = MultispectralPhotometric(2, mean, std)
        switch_off(photometric, 'noise', 'grey')
        out = photometric(torch.zeros(64, 2, 4, 4))  # every value is the mean
        factor = (out * std.view(2, 1, 1) + mean.view(2, 1, 1)) / mean.view(2, 1, 1)
        assert factor.min() >= 0.6 * 0.9
        assert factor.max() <= 1.4 * 1.1

    def test_given_views_stay(self) -> None:
        x = torch.randn(8, 5, 32, 32)
        before = x.clone()
        MultispectralPhotometric(5)(x)
        assert torch.equal(x, before)

    def test_nothing_clips(self) -> None:
        x = torch.randn(64, 5, 16, 16) * 3
        out = MultispectralPhotometric(5)(x)
        assert out.min() < -3
        assert out.max() > 3

    def test_noise_in_units_of_the_band(self) -> None:
        torch.manual_seed(0)
        photometric = MultispectralPhotometric(2)
        switch_off(photometric, 'jitter', 'grey')
        photometric.augmentations['blur'] = K.RandomGaussianBlur(7, (0.1, 0.1), p=1.0)
        x = torch.randn(16, 2, 64, 64) * torch.tensor([1.0, 1000.0]).view(2, 1, 1)
        noise = (photometric(x) - x).std(dim=(2, 3))
        noisy = noise[:, 0] > 0.05
        torch.testing.assert_close(
            noise[noisy].mean(dim=0), torch.tensor([0.1, 100.0]), rtol=0.05, atol=0
        )
        assert 0 < noisy.sum() < 16

    def test_constant_patch_stays_finite(self) -> None:
        assert torch.isfinite(
            MultispectralPhotometric(3)(torch.zeros(8, 3, 8, 8))
        ).all()


class TestDefaultViews:
    @pytest.mark.parametrize(
        ('in_channels', 'mean', 'std', 'unit', 'recipe', 'end'),
        [
            # torchgeo's default: 8-bit values divided by 255
            (3, 0.0, 255.0, None, RGBPhotometric, 255),
            # normalised from 0..1, as for ImageNet
            (3, [0.48, 0.46, 0.41], [0.23, 0.22, 0.22], None, RGBPhotometric, 1),
            # normalised from 0..255
            (3, [123.0, 116.0, 103.0], [58.0, 57.0, 57.0], None, RGBPhotometric, 255),
            # nothing has been done, to values in 0..1
            (3, None, None, 1.0, RGBPhotometric, None),
            # nothing is known: no batch is asked, all processes do the same
            (3, None, None, None, MultispectralPhotometric, None),
            # Sentinel-2 digital numbers: the range is not known, or is
            (3, [947.0, 1042.0, 1118.0], [593.0, 395.0, 333.0], None, None, None),
            (
                3,
                [947.0, 1042.0, 1118.0],
                [593.0, 395.0, 333.0],
                1e4,
                RGBPhotometric,
                10000,
            ),
            (6, [79.0] * 6, [20.0] * 6, None, MultispectralPhotometric, None),
            (1, None, None, 1.0, MultispectralPhotometric, None),
        ],
    )
    def test_recipe(
        self,
        in_channels: int,
        mean: list[float] | float | None,
        std: list[float] | float | None,
        unit: float | None,
        recipe: type[nn.Module] | None,
        end: float | None,
    ) -> None:
        mean = torch.tensor(mean) if mean is not None else None
        std = torch.tensor(std) if std is not None else None
        views, reason = default_views(64, in_channels, mean=mean, std=std, unit=unit)
        assert isinstance(views.photometric, recipe or MultispectralPhotometric)
        if end is not None:
            assert f'0..{end}' in reason
            torch.testing.assert_close(
                views.photometric.mean.flatten(), (mean / end).flatten()
            )
        else:
            assert 'recipe' in reason
