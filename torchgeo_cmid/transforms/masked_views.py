# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""From a batch to two views, their masks, and where their cells and fill pixels lie."""

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchgeo.datasets.utils import Sample
from torchgeo.tasks import BaseTask

from ..networks import Student
from ..transforms import (
    cell_grid,
    default_views,
    fill_with_valid_mean,
    limit_values,
    random_cell_mask,
    warp_valid,
)

Pair = tuple[Tensor, Tensor]


class ViewTask(BaseTask):
    """Base of a task that learns from two masked views of each patch."""

    student: Student
    cells: int
    augmentations: nn.Module | None
    _default_views: nn.Module | None = None

    def patches(self, batch: Sample) -> tuple[Pair, Pair | None, Tensor | None]:
        """Take the patches for either view from a batch, fill pixels filled.

        They are of two dates, or twice the same.

        Args:
            batch: ``image`` (B, C or 2 C, H, W); where fill pixels are known, ``valid``
                (B, 1 or 2, H, W) bool, False where there is no data; and where the
                pixels of two dates are not those of the same ground, ``frame`` (B, 3,
                3), which maps pixels (x, y, 1) of the second to those of the first.

        Returns:
            The patches, (B, C, H, W) each, their valid pixels, (B, 1, H, W) bool each,
            and their frame, as :meth:`draw_views` takes them.

        Raises:
            ValueError: If the bands are not *in_channels*, or twice as many.
        """
        x: Tensor = batch['image']
        in_channels = self.hparams['in_channels']
        if x.shape[1] not in (in_channels, 2 * in_channels):
            raise ValueError(
                f'the batch has {x.shape[1]} bands: in_channels={in_channels} must be '
                'that number, or half of it for two dates in one image'
            )
        x = x.to(torch.promote_types(self.student.mask_token.dtype, torch.float32))
        dates = list(torch.split(x, in_channels, dim=1))  # one, or two
        valid = None
        if 'valid' in batch:
            masks = torch.split(batch['valid'].expand(-1, len(dates), -1, -1), 1, dim=1)
            valid = masks[0], masks[-1]
            # before anything else sees them
            dates = list(map(fill_with_valid_mean, dates, masks))
        dates = list(map(limit_values, dates))
        return (dates[0], dates[-1]), valid, batch.get('frame')

    def draw_views(
        self, images: Pair, valid: Pair | None = None, frame: Tensor | None = None
    ) -> tuple[Pair, ...]:
        """Draw two views of each patch, their masks, and where their cells lie.

        Args:
            images: The patches for either view, (B, C, H, W) each.
            valid: Their valid pixels, (B, 1, H, W) bool each. None: all are.
            frame: Matrices that map pixels (x, y, 1) of the second patch to those of
                the first, (B, 3, 3). None: they are the same.

        Returns:
            Views, (B, C, S, S) each, masks of cells, (B, S/32, S/32) bool each, grids,
            (B, h, w, 2) each, in pixels of the first patch, and with *valid* the valid
            pixels of the views, (B, 1, S, S) bool each, as :meth:`compute_losses` takes
            them.
        """
        with torch.autocast(self.device.type, enabled=False):
            views, transforms = self._augment(images, valid)
        size, ratio = self.hparams['size'], self.hparams['mask_ratio']
        batch_size = len(images[0])
        masks = (
            random_cell_mask(batch_size, self.cells, ratio, self.device),
            random_cell_mask(batch_size, self.cells, ratio, self.device),
        )
        ground = transforms[1]  # from pixels of the first patch to those of the view
        if frame is not None:
            ground = ground @ torch.linalg.inv(frame.to(ground))
        grids = (
            cell_grid(transforms[0], size, self.student.map_size),
            cell_grid(ground, size, self.student.map_size),
        )
        if valid is None:
            return views, masks, grids
        valid = (
            warp_valid(valid[0], transforms[0], size),
            warp_valid(valid[1], transforms[1], size),
        )
        return views, masks, grids, valid

    def _augment(self, images: Pair, valid: Pair | None) -> tuple[Pair, Pair]:
        """Draw the views and their matrices by *augmentations*, or by our recipe."""
        views: tuple[Pair, Pair]
        if self.augmentations is not None:
            views = self.augmentations(images)
            return views
        if self._default_views is None:
            recipe = self._choose_recipe(images[0])
            # no submodule: kornia's buffers are derived, no checkpoint must hold them
            self.__dict__['_default_views'] = recipe.to(self.device)
        assert self._default_views is not None
        views = self._default_views(images, valid)
        return views

    def _choose_recipe(self, images: Tensor) -> nn.Module:
        """Choose the recipe of the views from what is known of the values."""
        datamodule = getattr(self.trainer, 'datamodule', None)
        views, reason = default_views(
            self.hparams['size'],
            self.hparams['in_channels'],
            mean=getattr(datamodule, 'mean', None),
            std=getattr(datamodule, 'std', None),
            observed=(float(images.min()), float(images.max())),
        )
        rank_zero_info(f'views: {reason}')
        return views
