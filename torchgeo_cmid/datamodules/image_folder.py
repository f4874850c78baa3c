# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A data module for folders of PNG, JPEG and TIFF without a georeference."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from torchgeo.datasets.utils import Sample

from ..datasets.images import Crop, Kind, PlainImages
from ..numeric_range import Range
from ..rasters.listing import Names
from ..samplers import RandomImageSampler
from .folder import FolderDataModule
from .loader import ResumableDataLoader
from .statistics import Normalization

_COUNT = Range(1, whole=True)
_SHARE = Range(0, 1, with_high=False)

#: Argument -> its range.
RANGES = {
    'patch_size': _COUNT,
    'length': _COUNT,
    'batch_size': _COUNT,
    'num_workers': Range(0, whole=True),
    'val_split': _SHARE,
    'test_split': _SHARE,
    'split_seed': Range(0, whole=True),
    'unit': Range(0, with_low=False),
}


class ImageFolderDataModule(FolderDataModule):
    """Squares of images that have no place on the ground.

    Where all images lie in folders one level deep, these are classes and a sample has a
    ``label``. Which part an image belongs to follows from a hash of its name. No image
    is opened before it is drawn, beside those that the statistics come from, and what
    lies beside an image (masks, world files) is not read. Pixels are as stored:
    orientations of EXIF are not applied; colours of a table become red, green and blue;
    alpha says where there is no data; CMYK is refused.
    """

    #: Images that the statistics are estimated from, at most.
    num_statistics_patches = 512

    def __init__(
        self,
        paths: list[str] | str = 'data',
        patch_size: int = 224,
        length: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        val_split: float = 0.1,
        test_split: float = 0.0,
        split_seed: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        skip_bad_files: bool = False,
        unit: float | None = None,
    ) -> None:
        """Initialize a new ImageFolderDataModule instance.

        Args:
            paths: Local folders, searched recursively for PNG, JPEG and TIFF.
            patch_size: Height and width of a sample in pixels: a random square of a
                larger image; a smaller one is enlarged until its shorter side fills it.
            length: Images per epoch, of all processes together (defaults to each
                training image once).
            batch_size: Size of each mini-batch.
            num_workers: Number of workers for parallel data loading.
            val_split: Share of the images for validation, at least 0.
            test_split: Share of the images for testing, at least 0.
            split_seed: Chooses which images are for validation and testing.
            mean: Mean of each band, in the files' units (defaults to an estimate).
            std: Standard deviation of each band (defaults to an estimate).
            skip_bad_files: If True, the next image takes the place of one that cannot
                be read or has other bands or another data type, with a warning.
            unit: The raw number that stands for 1 (defaults to 255 for 8-bit images,
                else unknown).

        Raises:
            ValueError: If an argument is out of range, or only one of *mean* and *std*
                is given.
        """
        super().__init__(PlainImages, batch_size, num_workers)
        if (mean is None) != (std is None):
            raise ValueError('mean and std go together: give both or neither')
        given = {
            'patch_size': patch_size,
            'length': length,
            'batch_size': batch_size,
            'num_workers': num_workers,
            'val_split': val_split,
            'test_split': test_split,
            'split_seed': split_seed,
            'unit': unit,
        }
        for name, value in given.items():
            left_open = value is None and name in ('length', 'unit')
            if not left_open and not RANGES[name].holds(value):
                raise ValueError(f'{name}={value} must be {RANGES[name]}')
        if val_split + test_split >= 1:
            raise ValueError(
                f'val_split={val_split} and test_split={test_split} must be less than '
                '1 together'
            )
        self.paths = [paths] if isinstance(paths, str) else list(paths)
        self.patch_size, self.length = patch_size, length
        self.val_split, self.test_split = val_split, test_split
        self.split_seed, self.skip_bad_files = split_seed, skip_bad_files
        self.given = None if mean is None or std is None else (mean, std)
        self.normalization: Normalization | None = None
        self.seed: int | None = None
        self._unit = unit
        self._place: dict[str, int] | None = None
        self._train_loader: ResumableDataLoader | None = None

    @property
    def unit(self) -> float | None:
        """The raw number that stands for 1, None if unknown; after :meth:`setup`."""
        if self._unit is None and self.kind.dtype == 'uint8':
            return 255.0
        return self._unit

    @property
    def in_channels(self) -> int:
        """Number of bands of an image, known after :meth:`setup`."""
        return self.kind.bands

    @property
    def _bands(self) -> list[int | str]:
        """Bands of an image."""
        return list(self.images.bands)

    def setup(self, stage: str) -> None:
        """List the images, part them and read one, once.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            FileNotFoundError: If *paths* names no folder of images.
            OSError: If an image cannot be read.
            ValueError: If a part or an epoch is empty.
        """
        if self.train_dataset is not None:
            return
        self.names = self._from_first(lambda: Names(self.paths))
        shares = self.names.shares(self.split_seed)
        held = self.val_split + self.test_split
        parts = {
            'val': np.flatnonzero(shares < self.val_split),
            'test': np.flatnonzero((shares >= self.val_split) & (shares < held)),
            'train': np.flatnonzero(shares >= held),
        }
        for name, share in (('val', self.val_split), ('test', self.test_split)):
            if share and not len(parts[name]):
                raise ValueError(
                    f'{name}_split={share} of {len(shares)} images is none: set a '
                    'larger one, another split_seed, or 0'
                )
        if not len(parts['train']):
            raise ValueError('no image is left to train on: set a smaller val_split')
        self.kind = self._from_first(lambda: self._look(parts['train']))
        made = {
            name: PlainImages(
                self.names, numbers, self.patch_size, self.kind, self.skip_bad_files
            )
            for name, numbers in parts.items()
        }
        self.images = self.train_dataset = made['train']
        self.val_dataset, self.test_dataset = made['val'], made['test']
        if self.given is not None:
            self._normalize(Normalization(self.images.bands, *self.given))
        if self.seed is None:
            self.seed = self._broadcast(torch.initial_seed())
        self.train_sampler = RandomImageSampler(
            self.images,
            length=self.length,
            seed=self.seed,
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        if self.train_sampler.num_samples < self.batch_size:
            raise ValueError(
                f'{self.train_sampler.num_samples} images per epoch and process give '
                f'no batch of batch_size={self.batch_size}: set a larger length or a '
                'smaller batch_size'
            )
        rank_zero_info(
            f'found: {len(shares)} images, {len(self.images.classes)} classes, '
            f'{self.kind.bands} bands of {self.kind.dtype} (as {self.kind.path})'
        )
        rank_zero_info(
            f'images: {self.train_sampler.total_size} an epoch of {self.patch_size} x '
            f'{self.patch_size} pixels, {len(parts["val"])} to validate, '
            f'{len(parts["test"])} to test'
        )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Load random squares, each epoch in another order.

        Returns:
            The loader of training samples.
        """
        self._find_normalization()
        loader = ResumableDataLoader(
            self.images,
            sampler=self.train_sampler,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            drop_last=True,
            persistent_workers=self.num_workers > 0,
        )
        if self._place is not None:
            loader.load_state_dict(self._place)
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Load the middles of the images for validation.

        Returns:
            The loader, or none if *val_split* is 0.
        """
        return self._load_part(self.val_dataset) if self.val_split else []

    def test_dataloader(self) -> DataLoader[Sample]:
        """Load the middles of the images for testing.

        Returns:
            The loader.

        Raises:
            ValueError: If *test_split* is 0.
        """
        if not self.test_split:
            raise ValueError('test_split=0 leaves no image to test on: set a share')
        return self._load_part(self.test_dataset)

    def _look(self, numbers: np.ndarray[Any, Any]) -> Kind:
        """Read one image: all others must have its bands and its data type."""
        images = PlainImages(self.names, numbers, 1, skip_bad_files=self.skip_bad_files)
        number = int(images[0]['patch'][0])
        return images.look(number)

    def _load_part(self, part: Any) -> DataLoader[Sample]:
        """Load the images of a part in their order."""
        self._find_normalization()
        return DataLoader(
            part,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _estimate(self) -> Normalization:
        """Estimate the statistics from images that do not depend on the run's seed."""
        rng = np.random.default_rng(self.split_seed)
        total = len(self.images)
        drawn = rng.permutation(total)[: self.num_statistics_patches]
        crops = [Crop(int(i), *map(float, rng.random(2))) for i in drawn]
        return Normalization.estimate(self.images, crops)
