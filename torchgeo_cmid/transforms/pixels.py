# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How single values change, with few passes over the memory: kornia's formulas.

All but the blur work in place, on images (n, C, H, W) and factors (n, 1, 1, 1).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from kornia.filters import get_gaussian_kernel1d
from torch import Tensor

from .fill import valid_mean

#: Weights of red, green and blue in the luminance (ITU-R BT.601).
LUMINANCE = (0.299, 0.587, 0.114)


def adjust_brightness(x: Tensor, factor: Tensor) -> None:
    """Multiply by a factor and clip to 0..1."""
    x.mul_(factor).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor, valid: Tensor | None = None) -> None:
    """Multiply the distance from the mean luminance of the image and clip to 0..1."""
    mean = weighted_mean(valid_mean(x, valid), LUMINANCE)
    x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> None:
    """Multiply the distance from the pixel's luminance and clip to 0..1."""
    grey = weighted_mean(x, LUMINANCE)
    x.mul_(factor).add_(grey.mul_(1 - factor)).clamp_(0, 1)


def adjust_hue(x: Tensor, turns: Tensor) -> None:
    """Turn the hue, by a sixth of a turn at most.

    In sixths of a turn, where red lies at 0, green at 2 and blue at 4 = -2, a channel
    at the distance t from the hue is low + (high - low) clamp(2 - t, 0, 1): the
    definition of HSV without its case distinctions. Solved for the distance from red:
    t = (high - red + green + blue - 2 low) / (high - low), on the side of green where
    green > blue.
    """
    red, green, blue = x.unbind(1)  # (n, H, W)
    high = torch.maximum(red, green).maximum(blue)
    low = torch.minimum(red, green).minimum(blue)
    span = high - low
    hue = (high - red).add_(green).add_(blue).sub_(low, alpha=2)
    hue.div_(span.clamp(min=torch.finfo(x.dtype).tiny))
    hue.copysign_(green - blue).add_(turns[:, 0], alpha=6)  # -4 to 4
    low.sub_(span)
    for channel, centre in zip((red, green, blue), (0, 2, -2), strict=True):
        # 3 - |h - 3| is the distance for h in 0..6, and 2 - t is |h - 3| - 1
        share = hue.sub(centre).abs_().sub_(3).abs_().clamp_(1, 2)
        torch.addcmul(low, span, share, out=channel)


def solarize(x: Tensor) -> None:
    """Clip to 0..1 and invert the values from 0.5 on."""
    x.clamp_(0, 1).sub_(0.5).abs_().neg_().add_(0.5)


def make_grey(x: Tensor, weights: Sequence[float] = LUMINANCE) -> None:
    """Replace each band by the weighted mean of all."""
    x.copy_(weighted_mean(x, weights))


def add_noise(x: Tensor, std: Tensor, unit: Tensor | None = None) -> None:
    """Add Gaussian noise, its std in units of one per band, (1, C, 1, 1)."""
    x.addcmul_(torch.randn_like(x), std if unit is None else std * unit)


def weighted_mean(x: Tensor, weights: Sequence[float]) -> Tensor:
    """Add up the bands times their weights, to (n, 1, H, W)."""
    first, *others = x.unbind(1)
    mean = first * weights[0]
    for band, weight in zip(others, weights[1:], strict=True):
        mean.add_(band, alpha=weight)
    return mean[:, None]


def gaussian_blur(x: Tensor, sigma: Tensor, size: int = 7) -> Tensor:
    """Blur each image, its border reflected.

    Args:
        x: Images, (n, C, H, W).
        sigma: Standard deviation in pixels, (n, 1, 1, 1).
        size: Pixels of the kernel, odd.

    Returns:
        Blurred images, (n, C, H, W).
    """
    kernel = get_gaussian_kernel1d(size, sigma.view(-1, 1))[..., None, None, None]
    radius = size // 2
    x = F.pad(x, (radius, radius, radius, radius), mode='reflect')
    for dim in (3, 2):
        length = x.shape[dim] - 2 * radius
        blurred = x.narrow(dim, 0, length) * kernel[:, 0]
        for tap in range(1, size):
            blurred.addcmul_(x.narrow(dim, tap, length), kernel[:, tap])
        x = blurred
    return x
