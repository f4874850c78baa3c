# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""From a batch to two views, their masks, and where their cells and fill pixels lie."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .fill import fill_with_valid_mean, takes_valid, warp_valid
from .limits import limit_values
from .masking import random_cell_mask
from .matching import cell_grid
from .views import default_views

Pair = tuple[Tensor, Tensor]


class MaskedViews(NamedTuple):
    """Two views of each patch, and all that the losses need to know of them."""

    #: The weak and the strong view x1 and x2, (B, C, S, S) each.
    views: Pair
    #: The masks of their cells, (B, S/32, S/32) bool each, True = masked.
    masks: Pair
    #: The centres of their cells as (y, x) in pixels of the first patch, (B, h, w, 2).
    grids: Pair
    #: Their valid pixels, (B, 1, S, S) bool each. None: all are.
    valid: Pair | None = None


def join_dates(batch: Mapping[str, Any], in_channels: int) -> dict[str, Any]:
    """Put two dates on an axis of their own one after the other, as bands of an image.

    Args:
        batch: ``image`` (B, T, C, H, W), T = 1 or 2 dates, and ``valid`` (B, T, 1, H,
            W) or (B, T, H, W). What has no such axis stays as it is.
        in_channels: Number of bands C.

    Returns:
        What changes in the batch: ``image`` (B, T C, H, W) and ``valid`` (B, T, H, W).

    Raises:
        ValueError: If there are more dates, or other bands, or if ``valid`` or
            ``frame`` do not belong to them.
    """
    image: Tensor = batch['image']
    joined: dict[str, Any] = {}
    dates, bands = 1, image.shape[1]
    if image.ndim == 5:
        dates, bands = image.shape[1:3]
        if dates not in (1, 2) or bands != in_channels:
            raise ValueError(
                f'the batch has images of shape {tuple(image.shape)}, {dates} dates of '
                f'{bands} bands in (B, T, C, H, W): T must be 1 or 2, and C '
                f'in_channels={in_channels}'
            )
        joined['image'] = image.flatten(1, 2)
    elif image.ndim != 4:
        raise ValueError(
            f'the batch has images of shape {tuple(image.shape)}: they must be (B, C, '
            'H, W), or (B, T, C, H, W) for two dates'
        )
    else:
        dates = max(bands // in_channels, 1)
    shape = len(image), *image.shape[-2:]
    if 'valid' in batch:
        valid: Tensor = batch['valid']
        if valid.ndim == 5 and valid.shape[2] == 1:
            valid = joined['valid'] = valid.flatten(1, 2)
        own = valid.ndim == 4 and valid.shape[1] in (1, dates)
        if not own or (len(valid), *valid.shape[2:]) != shape:
            raise ValueError(
                f"'valid' of shape {tuple(batch['valid'].shape)} does not belong to "
                f'images of shape {tuple(image.shape)}: it must be (B, {dates}, H, W)'
            )
    if 'frame' in batch and batch['frame'].shape != (len(image), 3, 3):
        raise ValueError(
            f"'frame' of shape {tuple(batch['frame'].shape)} must be (B, 3, 3): it "
            'maps pixels of the second date to those of the first'
        )
    return joined


class TwoMaskedViews(nn.Module):
    """Draws two masked views of each patch of a batch.

    Fill pixels, whatever a data set has put there, get the mean of the valid ones here
    before anything is resampled or changed, so that whatever *augmentations* does, no
    value of theirs reaches another pixel. (In the views
    :meth:`~torchgeo_cmid.tasks.CMID.compute_losses` does the same, for the statistics
    of a crop are not those of its patch.) Huge values are limited here and nowhere
    else: see :func:`~torchgeo_cmid.transforms.limit_values`.

    Source: section III-A of `CMID <https://arxiv.org/abs/2304.09670>`__.

    Attributes:
        augmentations: What draws the views, see
            :class:`~torchgeo_cmid.transforms.Views`.
    """

    augmentations: nn.Module | None

    def __init__(
        self,
        augmentations: nn.Module | None = None,
        *,
        in_channels: int,
        size: int,
        map_size: tuple[int, int],
        mask_patch_size: int = 32,
        mask_ratio: float = 0.6,
    ) -> None:
        """Initialize a new TwoMaskedViews instance.

        Args:
            augmentations: Draws the views. It is given two batches of patches, (B, C,
                H, W) each, and, if it has an argument *valid*, their valid pixels, (B,
                1, H, W) bool each, or None. It returns two pairs, the views, (B, C, S,
                S) each, and the matrices that map pixels (x, y, 1) of the patch to
                those of the view, (B, 3, 3) each, and may return a third, the valid
                pixels of the views, (B, 1, S, S) bool each.
                None: the recipe that :meth:`choose_recipe` finds.
            in_channels: Number of bands C.
            size: Height and width S of a view in pixels.
            map_size: Height h and width w of the map of features in cells.
            mask_patch_size: Height and width of a cell of the mask in pixels.
            mask_ratio: Share of the cells of a view that is masked.
        """
        super().__init__()
        self.augmentations = augmentations
        self.in_channels = in_channels
        self.size = size
        self.map_size = map_size
        self.cells = size // mask_patch_size
        self.mask_ratio = mask_ratio

    def choose_recipe(
        self,
        mean: Tensor | float | None = None,
        std: Tensor | float | None = None,
        unit: float | None = None,
    ) -> str:
        """Choose the recipe for what is known of the values, unless one is given.

        Args:
            mean: As of :func:`~torchgeo_cmid.transforms.default_views`.
            std: As of it.
            unit: As of it.

        Returns:
            The choice in words, for the log.
        """
        if self.augmentations is not None:
            return f'as given, {type(self.augmentations).__name__}'
        self.augmentations, reason = default_views(
            self.size, self.in_channels, mean=mean, std=std, unit=unit
        )
        return reason

    @torch.no_grad()
    def forward(
        self, batch: Mapping[str, Any], dtype: torch.dtype = torch.float32
    ) -> MaskedViews:
        """Draw two views of each patch, their masks, and where their cells lie.

        Args:
            batch: ``image`` (B, C or 2 C, H, W): the same patch for either view, or two
                dates of it. Where fill pixels are known, ``valid`` (B, 1 or 2, H, W)
                bool, False where there is no data. Where the pixels of two dates are
                not those of the same ground, ``frame`` (B, 3, 3), which maps pixels
                (x, y, 1) of the second to those of the first.
            dtype: Type of the views, at least single precision.

        Returns:
            Views, masks, grids and valid pixels.

        Raises:
            ValueError: If the bands are not *in_channels*, or twice as many.
        """
        if self.augmentations is None:
            self.choose_recipe()
        images, valid = self._patches(batch, dtype)
        with torch.autocast(images[0].device.type, enabled=False):
            views, transforms, known = self._augment(images, valid)
        device, batch_size = images[0].device, len(images[0])
        masks = (
            random_cell_mask(batch_size, self.cells, self.mask_ratio, device),
            random_cell_mask(batch_size, self.cells, self.mask_ratio, device),
        )
        ground = transforms[1]  # from pixels of the first patch to those of the view
        if 'frame' in batch:
            ground = ground @ torch.linalg.inv(batch['frame'].to(ground))
        grids = (
            cell_grid(transforms[0], self.size, self.map_size),
            cell_grid(ground, self.size, self.map_size),
        )
        return MaskedViews(views, masks, grids, known)

    def _patches(
        self, batch: Mapping[str, Any], dtype: torch.dtype
    ) -> tuple[Pair, Pair | None]:
        """Take the patches for either view, (B, C, H, W) each, and their valid pixels.

        They are of two dates, or twice the same.
        """
        x: Tensor = batch['image']
        if x.shape[1] not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f'the batch has {x.shape[1]} bands: in_channels={self.in_channels} '
                'must be that number, or half of it for two dates in one image'
            )
        x = x.to(dtype)
        dates = list(torch.split(x, self.in_channels, dim=1))  # one, or two
        valid = None
        if 'valid' in batch:
            pixels = batch['valid'].expand(-1, len(dates), -1, -1).split(1, dim=1)
            valid = pixels[0], pixels[-1]
            dates = list(map(fill_with_valid_mean, dates, pixels))
        dates = list(map(limit_values, dates))
        return (dates[0], dates[-1]), valid

    def _augment(
        self, images: Pair, valid: Pair | None
    ) -> tuple[Pair, Pair, Pair | None]:
        """Draw the views, their matrices, and where they are valid."""
        assert self.augmentations is not None
        given = (images, valid) if takes_valid(self.augmentations) else (images,)
        views, transforms, *known = self.augmentations(*given)
        if valid is None:
            return views, transforms, None
        if known:
            return views, transforms, known[0]
        warped = (
            warp_valid(valid[0], transforms[0], self.size),
            warp_valid(valid[1], transforms[1], self.size),
        )
        return views, transforms, warped
