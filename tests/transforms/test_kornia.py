# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Our views are those of kornia's own pipeline: the same pixels, and as often.

From the same seed both draw the same parameters, so whole pipelines can be compared
pixel by pixel, and from different seeds in distribution. Kornia's is the one that the
benchmark takes for its baseline.
"""

import functools
import math
from collections.abc import Callable

import kornia.augmentation as K
import pytest
import torch
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
    solarize,
)
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn

from experiments.benchmarks.views import KorniaPhotometric, KorniaViews
from torchgeo_cmid.transforms import (
    MultispectralPhotometric,
    RGBPhotometric,
    Views,
    draws,
    pixels,
    resample,
)

Pipeline = Callable[[tuple[Tensor, Tensor]], tuple[tuple[Tensor, ...], ...]]
DTYPES = [(torch.float32, 3e-5), (torch.float64, 1e-6)]


def pipelines(bands: int, size: int) -> tuple[KorniaViews, Views]:
    """Kornia's pipeline and ours, for values that were normalised."""
    mean, std = torch.linspace(0.3, 0.5, bands), torch.linspace(0.1, 0.4, bands)
    ours = (
        RGBPhotometric(mean, std)
        if bands == 3
        else MultispectralPhotometric(bands, mean, std)
    )
    return KorniaViews(size, KorniaPhotometric(mean, std)), Views(size, ours)


class TestPixels:
    @pytest.mark.parametrize(
        ('ours', 'kornia', 'low', 'high'),
        [
            (pixels.adjust_brightness, adjust_brightness_accumulative, 0.6, 1.4),
            (pixels.adjust_contrast, adjust_contrast_with_mean_subtraction, 0.6, 1.4),
            (
                pixels.adjust_saturation,
                adjust_saturation_with_gray_subtraction,
                0.8,
                1.2,
            ),
            (
                pixels.adjust_hue,
                lambda x, turns: adjust_hue(x, 2 * math.pi * turns),
                -1 / 6,
                1 / 6,
            ),
        ],
        ids=['brightness', 'contrast', 'saturation', 'hue'],
    )
    def test_colours(
        self,
        ours: Callable[[Tensor, Tensor], None],
        kornia: Callable[[Tensor, Tensor], Tensor],
        low: float,
        high: float,
    ) -> None:
        torch.manual_seed(0)
        x = torch.rand(16, 3, 32, 32)
        # greys, black, white, pure colours and pixels with two equal bands
        x[0] = x[0, :1]
        x[1] = (x[1] > 0.5).float()
        x[2, 0] = x[2, 1]
        x[3, 1] = x[3, 2]
        x[4, 2] = x[4, 0]
        x[5] = 0.5 + 1e-6 * x[5]
        factor = torch.linspace(low, high, 16)
        expected = kornia(x, factor)
        ours(x, factor.view(-1, 1, 1, 1))
        torch.testing.assert_close(x, expected, rtol=0, atol=2e-6)

    def test_solarize(self) -> None:
        x = torch.rand(4, 3, 16, 16) * 1.4 - 0.2
        expected = solarize(x.clamp(0, 1), 0.5)
        pixels.solarize(x)
        torch.testing.assert_close(x, expected)

    @pytest.mark.parametrize(('dtype', 'tolerance'), DTYPES)
    def test_blur(self, dtype: torch.dtype, tolerance: float) -> None:
        x = torch.rand(8, 5, 20, 30, dtype=dtype)
        sigma = torch.linspace(0.1, 2, 8, dtype=dtype)
        expected = gaussian_blur2d(x, 7, sigma[:, None].expand(-1, 2))
        blurred = pixels.gaussian_blur(x, sigma.view(-1, 1, 1, 1))
        torch.testing.assert_close(blurred, expected, rtol=0, atol=tolerance)


class TestResample:
    @pytest.mark.parametrize('size', [32, 1])
    def test_whole_batch_or_one_by_one(self, size: int) -> None:
        """What other devices do is what a CPU does, on the edges and on one pixel."""
        torch.manual_seed(0)
        images = torch.rand(6, 3, 40, 50, dtype=torch.float64)
        boxes = torch.tensor(
            [
                [0, 0, 49, 39],
                [3, 5, 30, 38],
                [10, 0, 10, 20],
                [0, 39, 49, 39],
                [49, 39, 49, 39],
                [7, 7, 38, 38],
            ],
            dtype=torch.float64,
        )
        flipped = torch.tensor([True, False, True, False, True, True])
        each = resample._interpolate_each(images, boxes, flipped, size)
        together = resample._sample_all(images, boxes, flipped, size)
        torch.testing.assert_close(each, together, rtol=0, atol=1e-9)

    def test_transforms_of_boxes_one_pixel_wide(self) -> None:
        """Patches of two pixels, where crops are of one: as kornia has them."""
        kornia, ours = KorniaViews(8, nn.Identity()), Views(8, nn.Identity())
        images = torch.rand(64, 1, 2, 2)
        torch.manual_seed(0)
        expected = kornia((images, images))
        torch.manual_seed(0)
        result = ours((images, images))
        torch.testing.assert_close(result[0], expected[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(result[1], expected[1], rtol=0, atol=1e-5)


class TestSameSeed:
    @pytest.mark.parametrize(('dtype', 'tolerance'), DTYPES)
    @pytest.mark.parametrize('bands', [3, 13])
    @pytest.mark.parametrize(('height', 'width'), [(64, 64), (70, 90)])
    def test_same_views(
        self,
        bands: int,
        height: int,
        width: int,
        dtype: torch.dtype,
        tolerance: float,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Views and matrices agree pixel by pixel, whatever was drawn."""
        # the noise is drawn only where it is added: here a ramp stands in for it
        monkeypatch.setattr(torch, 'randn_like', ramp)
        # several images to a part, the last one of another number
        monkeypatch.setattr(draws, 'PART_BYTES', 5 * bands * 48**2 * dtype.itemsize)
        kornia, ours = pipelines(bands, 48)
        for seed in range(8):  # some of the 24 orders of the colour jitter
            torch.manual_seed(seed)
            images = 2 * torch.randn(2, 16, bands, height, width, dtype=dtype)
            torch.manual_seed(seed)
            views, transforms = ours(tuple(images))
            torch.manual_seed(seed)
            expected_views, expected_transforms = kornia(tuple(images))
            for view, expected in zip(views, expected_views, strict=True):
                error = (view - expected).abs().max()
                assert error <= tolerance * expected.abs().max()
            for transform, expected in zip(
                transforms, expected_transforms, strict=True
            ):
                torch.testing.assert_close(transform, expected, rtol=1e-5, atol=1e-3)

    def test_noise(self) -> None:
        """Where it was drawn it has the drawn standard deviation, elsewhere none."""
        torch.manual_seed(0)
        photometric = RGBPhotometric()
        for name in ('jitter', 'solarize', 'grey'):
            photometric.augmentations[name].p = 0.0
        photometric.augmentations['blur'] = K.RandomGaussianBlur(7, (0.1, 0.1), p=1.0)
        x = torch.full((200, 3, 64, 64), 0.5)
        noise = photometric(x) - x
        std = noise.std(dim=(1, 2, 3))
        noisy = std > 1e-4
        assert 0.5 < noisy.float().mean() < 0.7
        assert std[noisy].min() > 0.0118
        assert std[noisy].max() < 0.0284
        assert abs(std[noisy].mean() - 0.02) < 0.001
        # each value of each image is drawn for itself
        correlation = torch.corrcoef(noise[noisy].flatten(1)) - torch.eye(
            int(noisy.sum())
        )
        assert correlation.abs().max() < 0.05


def ramp(x: Tensor) -> Tensor:
    """Stand in for noise, the same for each image."""
    values = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype)
    return values.view(x.shape[1:]).expand_as(x)


def features(pipeline: Pipeline, bands: int, seed: int) -> Tensor:
    """Measure views of a batch of patches: one row per patch."""
    torch.manual_seed(1)
    patches = torch.randn(4000, bands, 6, 6)
    patches = nn.functional.interpolate(patches, size=24, mode='bicubic')
    patches += 0.5 * torch.randn_like(patches)
    torch.manual_seed(seed)
    (weak, strong), transforms = pipeline((patches, patches))
    columns = []
    for transform in transforms:
        scale_x, scale_y = transform[:, 0, 0], transform[:, 1, 1]
        columns += [
            1 / (scale_x * scale_y).abs(),  # area
            (scale_y / scale_x).abs().log(),  # aspect
            (scale_x < 0).float(),  # flipped
            transform[:, 0, 2] / scale_x,  # offset
            transform[:, 1, 2] / scale_y,
        ]
    for view in (weak, strong):
        columns += view[:, :3].mean(dim=(2, 3)).unbind(1)
        columns += view[:, :3].std(dim=(2, 3)).unbind(1)
        first, second = (view[:, i] - view[:, i].mean() for i in (0, 1))
        columns.append((first * second).mean(dim=(1, 2)))  # correlation of bands
        columns.append(view[:, :3].amax(dim=(1, 2, 3)))
        power = torch.fft.rfft2(view[:, 0] - view[:, 0].mean(), norm='ortho').abs()
        columns.append(power[:, 10:14, 10:].mean(dim=(1, 2)).log())  # what is noise
        columns.append(power[:, :4, :4].mean(dim=(1, 2)).log())  # what is left by blur
        columns.append(power[:, 5:8, 5:8].mean(dim=(1, 2)).log())
    return torch.stack(columns, dim=1).double()  # (4000, F)


@functools.cache
def kornia_features(bands: int) -> Tensor:
    """Measure kornia's views."""
    return features(pipelines(bands, 24)[0], bands, 11)


def discrepancy(first: Tensor, second: Tensor) -> float:
    """Largest difference of means, and of means of squares, in standard errors."""
    first, second = (
        (x - second.mean(dim=0)) / second.std(dim=0) for x in (first, second)
    )
    first, second = (torch.cat([x, x**2], dim=1) for x in (first, second))
    error = ((first.var(dim=0) + second.var(dim=0)) / len(first)).sqrt()
    return float(((first.mean(dim=0) - second.mean(dim=0)) / error).abs().max())


class TestDistribution:
    @pytest.mark.parametrize('bands', [3, 5])
    def test_same(self, bands: int) -> None:
        _, ours = pipelines(bands, 24)
        found = discrepancy(features(ours, bands, 10), kornia_features(bands))
        assert found < 4.5  # of some fifty figures

    @pytest.mark.parametrize(
        'wrong', ['area', 'flip', 'jitter', 'sigma', 'noise', 'solarize', 'grey']
    )
    def test_difference_is_noticed(self, wrong: str) -> None:
        _, ours = pipelines(3, 24)
        values = ours.photometric.augmentations
        if wrong == 'area':
            ours.augmentations['crop'] = K.RandomResizedCrop(
                (24, 24), (0.4, 1.0), (3 / 4, 4 / 3)
            )
        elif wrong == 'flip':
            ours.augmentations['flip'].p = 0.6
        elif wrong == 'jitter':
            values['jitter'] = K.ColorJitter(0.6, 0.6, 0.2, 0.1, p=0.8)
        elif wrong == 'sigma':
            values['blur'] = K.RandomGaussianBlur(7, (0.1, 1.6), p=1.0)
        else:
            values[wrong].p += 0.15
        found = discrepancy(features(ours, 3, 10), kornia_features(3))
        assert found > 4.5
