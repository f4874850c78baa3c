# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Crop, resize and flip images in one bilinear resampling."""

import torch
import torch.nn.functional as F
from torch import Tensor


def crop_transform(boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """Find where the pixels of a patch lie in its view.

    The outermost pixel centres of the box are those of the view, as with kornia's
    ``align_corners=True``. Along an axis where either is one pixel wide nothing is
    scaled.

    Args:
        boxes: Left, top, right and bottom pixel of the crop, (B, 4), all included.
        flipped: Views that are flipped horizontally, (B,) bool.
        size: Height and width S of the view in pixels.

    Returns:
        Matrices that map pixels (x, y, 1) of the patch to pixels of the view,
        (B, 3, 3).
    """
    start, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]  # (x, y), (B, 2)
    one_pixel = (extent == 0) | (size == 1)
    scale = torch.where(one_pixel, 1, (size - 1) / extent.clamp(min=1))
    offset = -scale * start
    mirror = torch.where(flipped, -1, 1)
    transform = torch.zeros(len(boxes), 3, 3).to(boxes)
    transform[:, 0, 0] = mirror * scale[:, 0]
    transform[:, 1, 1] = scale[:, 1]
    transform[:, 0, 2] = mirror * offset[:, 0] + flipped * (size - 1)
    transform[:, 1, 2] = offset[:, 1]
    transform[:, 2, 2] = 1
    return transform


def crop_and_flip(images: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """Crop, resize and flip each image.

    Args:
        images: Patches, (B, C, H, W).
        boxes: Left, top, right and bottom pixel of the crop, (B, 4), all included,
            integers on the host.
        flipped: Views to flip horizontally, (B,) bool, on the host.
        size: Height and width S of the views in pixels.

    Returns:
        Views, (B, C, S, S).
    """
    if images.device.type == 'cpu':
        return _interpolate_each(images, boxes, flipped, size)
    return _sample_all(images, boxes, flipped, size)


def _interpolate_each(
    images: Tensor, boxes: Tensor, flipped: Tensor, size: int
) -> Tensor:
    """Resample one image after the other: on a CPU half the time of sampling a grid."""
    views = images.new_empty(*images.shape[:2], size, size)
    crops = zip(views, images, boxes.tolist(), flipped.tolist(), strict=True)
    for view, image, (left, top, right, bottom), flip in crops:
        crop = image[None, :, int(top) : int(bottom) + 1, int(left) : int(right) + 1]
        resized = F.interpolate(crop, (size, size), mode='bilinear', align_corners=True)
        view.copy_(resized[0].flip(2) if flip else resized[0])
    return views


def _sample_all(images: Tensor, boxes: Tensor, flipped: Tensor, size: int) -> Tensor:
    """Resample all images in one call, without waiting for the device."""
    boxes = boxes.to(images, non_blocking=True)
    flipped = flipped.to(images.device, non_blocking=True)
    last = max(images.shape[3] - 1, 1), max(images.shape[2] - 1, 1)
    along = torch.linspace(0, 1, size, dtype=images.dtype, device=images.device)
    across = torch.where(flipped[:, None], along.flip(0), along)  # (B, S)
    x = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * across
    y = boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * along
    x, y = 2 * x / last[0] - 1, 2 * y / last[1] - 1  # -1 and 1: outermost centres
    grid = torch.stack(
        [x[:, None].expand(-1, size, -1), y[:, :, None].expand(-1, -1, size)], dim=3
    )
    return F.grid_sample(images, grid, padding_mode='border', align_corners=True)
