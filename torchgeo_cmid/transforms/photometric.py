# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How the values of the strong view change: a recipe for RGB, one for any bands."""

from typing import Any

import kornia.augmentation as K
import torch
from kornia.augmentation import random_generator as rg
from kornia.constants import DataKey
from torch import Tensor, nn
from torchgeo.transforms import RandomGrayscale


def _band_vector(values: Tensor | float) -> Tensor:
    """Shape one value per band for broadcasting over images, (1, C or 1, 1, 1)."""
    return torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)


def _band_std(x: Tensor, valid: Tensor | None) -> Tensor:
    """Standard deviation of each band over the valid pixels, (1, C, 1, 1)."""
    dims = (0, 2, 3)
    if valid is None:
        return x.std(dim=dims, keepdim=True)
    count = valid.sum().clamp(min=1)
    mean = x.where(valid, 0).sum(dim=dims, keepdim=True) / count
    deviation = (x - mean).where(valid, 0).square().sum(dim=dims, keepdim=True)
    return (deviation / (count - 1).clamp(min=1)).sqrt()


class RandomNoise(K.IntensityAugmentationBase2D):
    """Add Gaussian noise whose standard deviation is drawn for each image."""

    def __init__(self, std: tuple[float, float], p: float) -> None:
        """Initialize a new RandomNoise instance.

        Args:
            std: Range of the standard deviation, in units of the image's values.
            p: Probability for each image.
        """
        super().__init__(p=p)
        self._param_generator = rg.PlainUniformGenerator((std, 'std', None, None))

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Add the noise.

        Args:
            input: Images, (B, C, H, W).
            params: The drawn ``std``, (B,).
            flags: Unused.
            transform: Unused.

        Returns:
            Noisy images, (B, C, H, W).
        """
        std = params['std'].to(input).view(-1, 1, 1, 1)
        return input + std * torch.randn_like(input)


class RandomBandJitter(K.IntensityAugmentationBase2D):
    """Change brightness and contrast by one factor for all bands times one per band.

    Nothing is clipped: brightness multiplies the values, contrast multiplies their
    distance from the image's mean of the band.
    """

    def __init__(
        self,
        factor: tuple[float, float] = (0.6, 1.4),
        band_factor: tuple[float, float] = (0.9, 1.1),
        p: float = 0.8,
    ) -> None:
        """Initialize a new RandomBandJitter instance.

        Args:
            factor: Range of the factor for all bands.
            band_factor: Range of the factor of each band.
            p: Probability for each image.
        """
        super().__init__(p=p)
        self.band_factor = band_factor
        self._param_generator = rg.PlainUniformGenerator(
            (factor, 'brightness', None, None), (factor, 'contrast', None, None)
        )

    def apply_transform(
        self,
        input: Tensor,
        params: dict[str, Tensor],
        flags: dict[str, Any],
        transform: Tensor | None = None,
    ) -> Tensor:
        """Change brightness, then contrast.

        Args:
            input: Images, (B, C, H, W).
            params: The drawn ``brightness`` and ``contrast``, (B,).
            flags: Unused.
            transform: Unused.

        Returns:
            Changed images, (B, C, H, W).
        """
        bands = input.new_empty(2, *input.shape[:2], 1, 1).uniform_(*self.band_factor)
        brightness = params['brightness'].to(input).view(-1, 1, 1, 1) * bands[0]
        contrast = params['contrast'].to(input).view(-1, 1, 1, 1) * bands[1]
        mean = input.mean(dim=(2, 3), keepdim=True)
        return brightness * (mean + contrast * (input - mean))


def _blur() -> K.RandomGaussianBlur:
    """Blur with the sigma of each image in 0.1-2 pixels."""
    return K.RandomGaussianBlur((7, 7), (0.1, 2.0), p=1.0)


class RGBPhotometric(nn.Module):
    """The strong view's recipe for RGB, on values in 0..1.

    In this order: colour jitter (0.4, 0.4, 0.2, 0.1), p 0.8; Gaussian blur (kernel 7,
    sigma 0.1-2); Gaussian noise (std 0.012-0.028), p 0.6; solarize (threshold 0.5),
    p 0.2; grey, p 0.2.

    Source: section IV-A of `CMID <https://arxiv.org/abs/2304.09670>`__.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor | float = 0.0, std: Tensor | float = 1.0) -> None:
        """Initialize a new RGBPhotometric instance.

        Args:
            mean: Mean that was subtracted from values in 0..1, (C,) or one for all.
            std: Standard deviation by which they were divided, (C,) or one for all.
        """
        super().__init__()
        self.register_buffer('mean', _band_vector(mean), persistent=False)
        self.register_buffer('std', _band_vector(std), persistent=False)
        self.augment = K.AugmentationSequential(
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            _blur(),
            RandomNoise((0.012, 0.028), p=0.6),
            K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=0.2),
            K.RandomGrayscale(p=0.2),
            data_keys=[DataKey.INPUT],
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Undo the normalisation, augment, and normalise again.

        Args:
            x: Views, (B, 3, S, S), normalised; fill pixels hold the mean of the valid
                ones, so that they do not count in the contrast.
            valid: Unused.

        Returns:
            Augmented views, (B, 3, S, S), normalised.
        """
        values = torch.addcmul(self.mean.to(x), x, self.std.to(x))
        augmented: Tensor = self.augment(values)
        return (augmented - self.mean.to(x)) / self.std.to(x)


class MultispectralPhotometric(nn.Module):
    """The strong view's recipe for any bands: no hue, no solarize, nothing that clips.

    Brightness and contrast with one factor in 0.6-1.4 for all bands times one in
    0.9-1.1 per band, p 0.8, on the values before they were normalised; Gaussian blur
    (kernel 7, sigma 0.1-2); Gaussian noise (a tenth of the band's standard deviation
    in the batch), p 0.6; the weighted mean of the normalised bands as grey, p 0.2.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        in_channels: int,
        mean: Tensor | float = 0.0,
        std: Tensor | float = 1.0,
        grayscale_weights: Tensor | None = None,
    ) -> None:
        """Initialize a new MultispectralPhotometric instance.

        Args:
            in_channels: Number of bands C.
            mean: Mean that was subtracted from the values, (C,) or one for all.
            std: Standard deviation by which they were divided, (C,) or one for all.
            grayscale_weights: Weights of the bands in the grey value, (C,).
                Defaults to the mean of all bands.
        """
        super().__init__()
        self.register_buffer('mean', _band_vector(mean), persistent=False)
        self.register_buffer('std', _band_vector(std), persistent=False)
        if grayscale_weights is None:
            grayscale_weights = torch.ones(in_channels)
        self.jitter = RandomBandJitter()
        self.blur = _blur()
        self.noise = RandomNoise((0.1, 0.1), p=0.6)
        self.grayscale = RandomGrayscale(grayscale_weights, p=0.2)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Augment the views.

        Args:
            x: Views, (B, C, S, S), normalised; fill pixels hold the mean of the valid
                ones, so that they do not count in the contrast.
            valid: Valid pixels, (B, 1, S, S) bool: the standard deviation is theirs.
                None: all are.

        Returns:
            Augmented views, (B, C, S, S), normalised.
        """
        mean, std = self.mean.to(x), self.std.to(x)
        x = (self.jitter(torch.addcmul(mean, x, std)) - mean) / std
        x = self.blur(x)
        unit = _band_std(x, valid).clamp(min=1e-6)
        x = self.noise(x / unit) * unit
        augmented: Tensor = self.grayscale(x)
        return augmented
