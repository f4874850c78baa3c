# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What is known of an image without any network: its bands' statistics."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cell_statistics(images: Tensor, cells: tuple[int, int]) -> Tensor:
    """Mean and standard deviation of each band in each cell of an image.

    Args:
        images: Images, (B, C, H, W).
        cells: Height h and width w of the map in cells.

    Returns:
        Means, then standard deviations, (B, 2 C, h, w).
    """
    x = images.double()  # the variance is a small difference of large numbers
    mean = F.adaptive_avg_pool2d(x, cells)
    variance = F.adaptive_avg_pool2d(x.square(), cells) - mean.square()
    return torch.cat([mean, variance.clamp(min=0).sqrt()], dim=1).float()


def image_statistics(images: Tensor) -> Tensor:
    """Mean and standard deviation of each band of an image.

    Args:
        images: Images, (B, C, H, W).

    Returns:
        Means, then standard deviations, (B, 2 C).
    """
    return cell_statistics(images, (1, 1)).flatten(1)
