# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Two views of each patch: a weak and a strong one, with where they lie in it."""

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from .draws import Draw
from .fill import fill_with_valid_mean, warp_valid
from .photometric import MultispectralPhotometric, RGBPhotometric
from .resample import crop_and_flip, crop_transform

Pair = tuple[Tensor, Tensor]


class Views(nn.Module):
    """A weak and a strong view of each patch, drawn for each image on its device.

    Each view is a random resized crop (area 0.3-1, aspect 3/4-4/3, bilinear) of the
    native patch with a random horizontal flip; the strong one is changed in its values
    as well.

    Source: section IV-A of `CMID <https://arxiv.org/abs/2304.09670>`__.
    """

    def __init__(self, size: int, photometric: nn.Module) -> None:
        """Initialize a new Views instance.

        Args:
            size: Height and width S of the views in pixels.
            photometric: What changes the values of the strong view, (B, C, S, S) ->
                (B, C, S, S). Where fill pixels are known it is given the valid ones,
                (B, 1, S, S) bool, as well.
        """
        super().__init__()
        self.size = size
        # no submodules: they are to draw on the host wherever the views are computed
        self.augmentations = {
            'crop': K.RandomResizedCrop((size, size), (0.3, 1.0), (3 / 4, 4 / 3)),
            'flip': K.RandomHorizontalFlip(p=0.5),
        }
        self.photometric = photometric

    @torch.no_grad()
    def forward(self, images: Pair, valid: Pair | None = None) -> tuple[Pair, Pair]:
        """Draw the views.

        Args:
            images: The patches for the weak and for the strong view, (B, C, H, W) each:
                twice the same, or two dates of the same place.
            valid: The valid pixels of the patches, (B, 1, H, W) bool each; others do
                not count in the statistics that the strong view is changed by. None:
                all are.

        Returns:
            The views, (B, C, S, S) each, and the matrices that map pixels (x, y, 1) of
            the patch to pixels of the view, (B, 3, 3) each.
        """
        weak, weak_transform = self._crop(images[0])
        strong, strong_transform = self._crop(images[1])
        if valid is None:
            strong = self.photometric(strong)
        else:
            pixels = warp_valid(valid[1], strong_transform, strong.shape[-1])
            strong = self.photometric(fill_with_valid_mean(strong, pixels), pixels)
        return (weak, strong), (weak_transform, strong_transform)

    def _crop(self, images: Tensor) -> Pair:
        """Draw where the views lie, and resample them."""
        crop = Draw(self.augmentations['crop'], images.shape)
        flip = Draw(self.augmentations['flip'], images.shape)
        boxes = crop.values['src'][:, [0, 2]].flatten(1)  # (B, 4)
        views = crop_and_flip(images, boxes, flip.chosen, self.size)
        transform = crop_transform(boxes.to(images.dtype), flip.chosen, self.size)
        return views, transform.to(images.device, non_blocking=True)


def default_views(
    size: int,
    in_channels: int,
    *,
    mean: Tensor | float | None = None,
    std: Tensor | float | None = None,
    observed: tuple[float, float],
) -> tuple[Views, str]:
    """Choose the recipe that suits the bands and what is known of their values.

    The RGB recipe is defined on values in 0..1. Three bands get it where such values
    can be had: the data module has scaled them (mean 0), or has normalised values that
    were in 0..1 or in 0..255 before, or nothing was done and they lie in 0..1. Any
    other band set, and three bands of unknown range, get the recipe for any range.

    Args:
        size: Height and width S of the views in pixels.
        in_channels: Number of bands C.
        mean: Mean that the data module has subtracted, (C,) or one for all bands.
            None: it is not known.
        std: Standard deviation by which it has divided, (C,) or one for all bands.
        observed: Lowest and highest value of a batch as it comes.

    Returns:
        The views, and the choice in words, for the log.
    """
    if mean is None or std is None:
        mean, std = 0.0, 1.0
    mean = torch.as_tensor(mean, dtype=torch.float32)
    std = torch.as_tensor(std, dtype=torch.float32)
    normalised = bool(mean.any())
    scaled = not normalised and bool((std != 1).any())

    if in_channels == 3:
        if normalised:
            for end in (1.0, 255.0):
                if bool((mean > 0).all()) and bool((mean + std <= end).all()):
                    photometric = RGBPhotometric(mean / end, std / end)
                    reason = f'values in 0..{end:g} before they were normalised'
                    return Views(size, photometric), f'RGB recipe: {reason}'
        elif scaled:
            reason = f'values divided by {float(std.max()):g}, taken for 0..1'
            return Views(size, RGBPhotometric()), f'RGB recipe: {reason}'
        elif observed[0] >= 0 and observed[1] <= 1:
            reason = 'values in 0..1, not normalised'
            return Views(size, RGBPhotometric()), f'RGB recipe: {reason}'

    reason = f'{in_channels} bands'
    if in_channels == 3:
        reason += f' of unknown range (seen: {observed[0]:.3g}..{observed[1]:.3g})'
    multispectral = MultispectralPhotometric(in_channels, mean, std)
    return Views(size, multispectral), f'multispectral recipe: {reason}'
