# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Two views of each patch: a weak and a strong one, with where they lie in it."""

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from .draws import Draw
from .fill import takes_valid, warp_valid
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
                (B, C, S, S). If it has an argument *valid*, it is given the valid
                pixels, (B, 1, S, S) bool, where fill is known.
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
    def forward(self, images: Pair, valid: Pair | None = None) -> tuple[Pair, ...]:
        """Draw the views.

        Args:
            images: The patches for the weak and for the strong view, (B, C, H, W) each:
                twice the same, or two dates of the same place.
            valid: The valid pixels of the patches, (B, 1, H, W) bool each; others do
                not count in the statistics that the strong view is changed by. None:
                all are.

        Returns:
            The views, (B, C, S, S) each, the matrices that map pixels (x, y, 1) of the
            patch to pixels of the view, (B, 3, 3) each, and, with *valid*, the valid
            pixels of the views, (B, 1, S, S) bool each.
        """
        weak, weak_transform = self._crop(images[0])
        strong, strong_transform = self._crop(images[1])
        transforms = weak_transform, strong_transform
        if valid is None:
            return (weak, self.photometric(strong)), transforms
        pixels = (
            warp_valid(valid[0], weak_transform, self.size),
            warp_valid(valid[1], strong_transform, self.size),
        )
        known = pixels[1:] if takes_valid(self.photometric) else ()
        return (weak, self.photometric(strong, *known)), transforms, pixels

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
    unit: float | None = None,
) -> tuple[Views, str]:
    """Choose the recipe that suits the bands and what is known of their values.

    The RGB recipe is defined on values in 0..1. Three bands get it where such values
    can be had: their unit is known, or they have been scaled (mean 0), or normalised by
    statistics that only values in 0..1 or in 0..255 have. Any other band set, and three
    bands of unknown range, get the recipe for any range.

    Args:
        size: Height and width S of the views in pixels.
        in_channels: Number of bands C.
        mean: Mean that has been subtracted, (C,) or one for all bands. None: nothing is
            known to have been done.
        std: Standard deviation by which was divided, (C,) or one for all bands.
        unit: The number before that which stands for 1, such as 255. None: unknown.

    Returns:
        The views, and the choice in words, for the log.
    """
    normalised = mean is not None and std is not None
    mean = torch.as_tensor(mean if normalised else 0.0, dtype=torch.float32)
    std = torch.as_tensor(std if normalised else 1.0, dtype=torch.float32)
    reason = f'{in_channels} bands'
    if in_channels == 3:
        if unit is None and normalised:
            unit = _guess_unit(mean, std)
        if unit is not None:
            photometric = RGBPhotometric(mean / unit, std / unit)
            return Views(size, photometric), f'RGB recipe: values in 0..{unit:g}'
        reason += ' of unknown range'
    multispectral = MultispectralPhotometric(in_channels, mean, std)
    return Views(size, multispectral), f'multispectral recipe: {reason}'


def _guess_unit(mean: Tensor, std: Tensor) -> float | None:
    """Tell from statistics what stands for 1, where that is beyond doubt."""
    if not mean.any():
        return float(std.max()) if (std != 1).any() else None
    fitting = (end for end in (1.0, 255.0) if (mean + std <= end).all())
    return next(fitting, None) if (mean > 0).all() else None
