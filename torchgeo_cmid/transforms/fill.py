# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Fill pixels: what stands in their place, and where they lie in views and cells.

In a mask of valid pixels, (B, 1, H, W) bool, they are False. Who sees to them, and why:

* :class:`~torchgeo_cmid.datasets.Scenes` sets them in each sample, which is for those
  who use it without our task: what a file holds there may be NaN.
* :class:`~torchgeo_cmid.transforms.TwoMaskedViews` sets them to the mean of the valid
  pixels in patches, before anything is resampled or blurred: what they held, NaN for
  example, would reach other pixels. It also finds them in the views, once per view.
* The recipes of the strong view leave them out of their statistics, and may change them
  like any other pixel.
* :meth:`~torchgeo_cmid.tasks.CMID.compute_losses` sets them to the mean of the valid
  pixels in views, whoever has drawn these, so that the student's spectral mean is that
  of the valid pixels, and leaves them out of losses and matches.
"""

import inspect

import torch.nn.functional as F
from torch import Tensor, nn

from .matching import cell_grid


def fill_with_valid_mean(image: Tensor, valid: Tensor) -> Tensor:
    """Set fill pixels to their image's mean of each band over the valid pixels.

    So they carry nothing, and the mean over all pixels is that over the valid ones.

    Args:
        image: Images, (B, C, H, W); fill pixels may hold anything, NaN included.
        valid: Valid pixels, (B, 1, H, W) bool.

    Returns:
        Images, (B, C, H, W), 0 where an image has no valid pixel at all.
    """
    return image.where(valid, valid_mean(image, valid))


def valid_mean(image: Tensor, valid: Tensor | None) -> Tensor:
    """Mean of each band over the valid pixels of each image.

    Args:
        image: Images, (B, C, H, W); fill pixels may hold anything, NaN included.
        valid: Valid pixels, (B, 1, H, W) bool. None: all are.

    Returns:
        Means, (B, C, 1, 1), 0 where an image has no valid pixel at all.
    """
    if valid is None:
        return image.mean(dim=(2, 3), keepdim=True)
    total = image.where(valid, 0).sum(dim=(2, 3), keepdim=True)
    return total / valid.sum(dim=(2, 3), keepdim=True).clamp(min=1)


def takes_valid(module: nn.Module) -> bool:
    """Tell whether a module wants to know which pixels are valid.

    Args:
        module: A module that changes images.

    Returns:
        Whether its *forward* has an argument *valid*.
    """
    return 'valid' in inspect.signature(module.forward).parameters


def warp_valid(valid: Tensor, transform: Tensor, size: int) -> Tensor:
    """Find the valid pixels of a view.

    Args:
        valid: Valid pixels of the patch, (B, 1, H, W) bool.
        transform: Matrices that map pixels (x, y, 1) of the patch to pixels of the
            view, (B, 3, 3).
        size: Height and width S of the view in pixels.

    Returns:
        Valid pixels of the view, (B, 1, S, S) bool: those that lie in the patch, and
        whose four neighbours there, which bilinear resampling mixes, are all valid.
    """
    ground = cell_grid(transform, size, (size, size))  # (y, x), (B, S, S, 2)
    last = ground.new_tensor(valid.shape[2:]) - 1
    position = (2 * ground / last - 1).flip(3)  # (x, y), -1 and 1: outermost centres
    share = F.grid_sample(
        valid.to(ground), position, padding_mode='border', align_corners=True
    )
    # a thousandth: coordinates on a pixel's centre are not exact
    inside = ((ground > -0.501) & (ground < last + 0.501)).all(dim=3)
    return (share > 0.999) & inside[:, None]
