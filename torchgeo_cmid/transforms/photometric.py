# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How the values of the strong view change: a recipe for RGB, one for any bands."""

from collections.abc import Sequence
from functools import partial

import kornia.augmentation as K
import torch
from kornia.augmentation import IntensityAugmentationBase2D
from kornia.augmentation import random_generator as rg
from torch import Tensor, nn

from .draws import Draw, parts
from .fill import valid_mean
from .pixels import (
    add_noise,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    make_grey,
    solarize,
)


def _band_vector(values: Tensor | float) -> Tensor:
    """Shape one value per band for broadcasting over images, (1, C or 1, 1, 1)."""
    return torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)


def _uniform(p: float, **ranges: tuple[float, float]) -> IntensityAugmentationBase2D:
    """Make an augmentation of kornia that only draws: values for each image."""
    augmentation = IntensityAugmentationBase2D(p=p)
    augmentation._param_generator = rg.PlainUniformGenerator(
        *((range_, name, None, None) for name, range_ in ranges.items())
    )
    return augmentation


def _blur() -> K.RandomGaussianBlur:
    """Blur with the sigma of each image in 0.1-2 pixels."""
    return K.RandomGaussianBlur((7, 7), (0.1, 2.0), p=1.0)


#: Names of what kornia's colour jitter draws, and what is done with them, in its order.
FACTORS = ('brightness_factor', 'contrast_factor', 'saturation_factor', 'hue_factor')
ADJUSTMENTS = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)


def _jitter(
    x: Tensor, *factors: Tensor, order: Sequence[int], valid: Tensor | None
) -> None:
    """Clip to 0..1, and adjust the colours in the order drawn for the batch."""
    x.clamp_(0, 1)
    for i in order:
        if ADJUSTMENTS[i] is adjust_contrast:
            adjust_contrast(x, factors[i], valid)
        else:
            ADJUSTMENTS[i](x, factors[i])


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
        # no submodules: they are to draw on the host wherever the views are computed
        self.augmentations = {
            'jitter': K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            'blur': _blur(),
            'noise': _uniform(0.6, std=(0.012, 0.028)),
            'solarize': K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=0.2),
            'grey': K.RandomGrayscale(p=0.2),
        }

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Undo the normalisation, augment, and normalise again.

        Args:
            x: Views, (B, 3, S, S), normalised; fill pixels hold something harmless.
            valid: Valid pixels, (B, 1, S, S) bool: the contrast is theirs. None: all
                are.

        Returns:
            Augmented views, (B, 3, S, S), normalised.
        """
        draws = {name: Draw(a, x.shape) for name, a in self.augmentations.items()}
        jitter = partial(_jitter, order=draws['jitter'].values['order'].tolist())
        mean, std = self.mean.to(x), self.std.to(x)
        augmented = torch.empty_like(x)
        for part in parts(x):
            values = torch.addcmul(mean, x[part], std)
            draws['jitter'].change(values, part, jitter, *FACTORS, valid=valid)
            values = gaussian_blur(values, draws['blur'].take('sigma', x, part))
            draws['noise'].change(values, part, add_noise, 'std')
            draws['solarize'].change(values, part, solarize)
            draws['grey'].change(values, part, make_grey)
            torch.div(values.sub_(mean), std, out=augmented[part])
        return augmented


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
        self.grayscale_weights = (grayscale_weights / grayscale_weights.sum()).tolist()
        # no submodules: they are to draw on the host wherever the views are computed
        self.augmentations = {
            'jitter': _uniform(0.8, brightness=(0.6, 1.4), contrast=(0.6, 1.4)),
            'blur': _blur(),
            'noise': _uniform(0.6, std=(0.1, 0.1)),
            'grey': K.RandomGrayscale(p=0.2),
        }

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Augment the views.

        Args:
            x: Views, (B, C, S, S), normalised; fill pixels hold something harmless.
            valid: Valid pixels, (B, 1, S, S) bool: contrast and standard deviation are
                theirs. None: all are.

        Returns:
            Augmented views, (B, C, S, S), normalised.
        """
        jitter = Draw(self.augmentations['jitter'], x.shape)
        brightness, contrast = _draw_band_factors(jitter, x)
        blur, noise, grey = (
            Draw(self.augmentations[name], x.shape)
            for name in ('blur', 'noise', 'grey')
        )
        centre = (self.mean / self.std).to(x)
        augmented = torch.empty_like(x)
        for part in parts(x):
            # b (m + c (v - m)) of the values v = mean + std x, m their mean in a band
            scale = brightness[part] * contrast[part]
            offset = (brightness[part] - 1) * centre
            known = None if valid is None else valid[part]
            offset += (brightness[part] - scale) * valid_mean(x[part], known)
            values = torch.addcmul(offset, x[part], scale)
            augmented[part] = gaussian_blur(values, blur.take('sigma', x, part))
        unit = _band_std(augmented, valid).clamp(min=1e-6)
        add_band_noise = partial(add_noise, unit=unit)
        make_band_grey = partial(make_grey, weights=self.grayscale_weights)
        for part in parts(x):
            noise.change(augmented[part], part, add_band_noise, 'std')
            grey.change(augmented[part], part, make_band_grey)
        return augmented


def _draw_band_factors(jitter: Draw, x: Tensor) -> Tensor:
    """Draw brightness and contrast of bands, (2, B, C, 1, 1), 1 where not chosen."""
    factors = torch.stack([jitter.values['brightness'], jitter.values['contrast']])
    bands = torch.empty(2, *x.shape[:2], dtype=x.dtype).uniform_(0.9, 1.1)
    bands *= factors[..., None]
    bands[:, ~jitter.chosen] = 1
    return bands[..., None, None].to(x.device, non_blocking=True)


def _band_std(x: Tensor, valid: Tensor | None) -> Tensor:
    """Standard deviation of each band over the valid pixels, (1, C, 1, 1)."""
    dims = (2, 3)
    inside = x.new_ones(len(x), 1, 1, 1) if valid is None else valid.to(x)
    count = inside.expand(-1, -1, *x.shape[2:]).sum(dims, keepdim=True)  # (B, 1, 1, 1)
    means, squares = [], []
    for part in parts(x):
        total = (x[part] * inside[part]).sum(dims, keepdim=True)
        means.append(total / count[part].clamp(min=1))
        deviation = (x[part] - means[-1]).mul_(inside[part])
        squares.append(torch.linalg.vector_norm(deviation, dim=dims, keepdim=True) ** 2)
    # from the means and squares of the images to those of the batch
    mean = torch.cat(means)
    centre = (count * mean).sum(dim=0) / count.sum().clamp(min=1)
    square = torch.cat(squares) + count * (mean - centre) ** 2
    variance = square.sum(dim=0, keepdim=True) / (count.sum() - 1).clamp(min=1)
    return variance.sqrt()
