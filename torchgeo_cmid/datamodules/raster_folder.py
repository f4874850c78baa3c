# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A data module for a folder of GeoTIFFs."""

from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader
from torchgeo.datasets.utils import Sample

from ..datasets import Scenes, Sensor, split_by_area
from ..datasets.batch import stack_patches
from ..numeric_range import Range
from ..rasters.cache import BlockCache
from ..rasters.scene import EQUAL_AREA
from ..samplers import (
    GriddedScenePatchSampler,
    NumberedPatches,
    RandomScenePatchSampler,
)
from .folder import FolderDataModule
from .found import describe
from .loader import ResumableDataLoader
from .statistics import Normalization

_COUNT = Range(1, whole=True)

#: Argument -> its range.
RANGES = {
    'patch_size': _COUNT,
    'length': _COUNT,
    'batch_size': _COUNT,
    'num_workers': Range(0, whole=True),
    'val_split': Range(0, 1, with_high=False),
    'split_seed': Range(0, whole=True),
    'min_valid': Range(0, 1),
    'dates': Range(1, 2, whole=True),
    'unit': Range(0, with_low=False),
    'val_length': _COUNT,
}


class RasterFolderDataModule(FolderDataModule):
    """Patches of a folder of GeoTIFFs, for self-supervised learning.

    Training patches are drawn at random over all scenes, validation patches lie on a
    grid; the two never overlap on the ground: see
    :mod:`torchgeo_cmid.datasets.splits`. What is drawn follows from
    ``--seed_everything`` and the epoch.

    Images are normalised per band. Unless *mean* and *std* are given they are estimated
    once, from the valid pixels of at most :attr:`num_statistics_patches` training
    patches, when the first loader is asked for. They are kept beside the run as
    ``normalization.json`` and in its checkpoints, and a resumed run takes them from
    there.
    """

    #: Patches that the statistics are estimated from, at most.
    num_statistics_patches = 512

    def __init__(
        self,
        paths: list[str] | str = 'data',
        bands: list[int | str] | None = None,
        patch_size: int = 224,
        length: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        val_split: float = 0.1,
        split_seed: int = 0,
        nodata: float | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        all_bands: list[str] | None = None,
        filename_regex: str | None = None,
        sensors: list[Sensor] | None = None,
        roi: str | list[float] | None = None,
        min_valid: float = 0.0,
        skip_bad_files: bool = False,
        dates: int = 1,
        date_format: str = '%Y%m%d',
        cache: str | None = None,
        unit: float | None = None,
        drivers: list[str] | None = None,
        val_length: int | None = None,
    ) -> None:
        r"""Initialize a new RasterFolderDataModule instance.

        What is only passed on to :class:`~torchgeo_cmid.datasets.Scenes` is described
        there at length, and is an attribute of the same name here.

        Args:
            paths: Folders, files or globs of GeoTIFFs: see Scenes.
            bands: Names or 1-based numbers of the bands to read (defaults to all): see
                Scenes.
            patch_size: Height and width of a patch in pixels.
            length: Training patches per epoch, of all processes together (defaults to
                about as many as fit without overlap).
            batch_size: Size of each mini-batch.
            num_workers: Number of workers for parallel data loading.
            val_split: Share of the area for validation, at least 0 and less than 1.
            split_seed: Chooses which ground is for validation. It is apart from
                ``--seed_everything`` so that runs can be compared.
            nodata: Fill value besides those that the files declare. NaN is no data too,
                unless a number is given here: see Scenes.
            mean: Mean of each band, in the files' units (defaults to an estimate).
            std: Standard deviation of each band, in the files' units (defaults to an
                estimate).
            all_bands: Names of the bands of a file with several, in its order: see
                Scenes.
            filename_regex: Regular expression whose groups ``band`` and ``date`` tell
                what a file holds: see Scenes.
            sensors: Several sensors, each with files and bands of its own, brought to
                one unit: see :class:`~torchgeo_cmid.datasets.Sensor`.
            roi: Region of interest, a file of polygons or [west, south, east, north] in
                degrees: see Scenes.
            min_valid: Least share of valid pixels of a patch, 0 to 1: see Scenes.
            skip_bad_files: If True, leave out what cannot be read, with a warning: see
                Scenes.
            dates: 1, or 2 for pairs: the two views of a patch then show the same ground
                on two dates, in images of other footprints and resolutions if need be.
                Where there is one date only, both views show that.
            date_format: How dates are written in names, as of
                :meth:`datetime.datetime.strptime`: see Scenes.
            cache: Local folder in which decoded pixels, and what was found out about
                files, are kept for other runs and processes: see Scenes.
            unit: The raw number that stands for 1 (255 for 8-bit images, 10000 for
                reflectance): defaults to 255 if all files hold uint8, else unknown.
            drivers: GDAL's drivers that may open files besides those of common formats:
                see Scenes.
            val_length: Validation patches, at most (defaults to all that lie on the
                ground for validation, or with *length* to as small a share of them as
                that is of the training patches).

        Raises:
            ValueError: If only one of *mean* and *std* is given, or a size or *unit* is
                not positive.
        """
        super().__init__(
            Scenes,
            batch_size,
            num_workers,
            paths=paths,
            bands=bands,
            nodata=nodata,
            all_bands=all_bands,
            filename_regex=filename_regex,
            sensors=sensors,
            roi=roi,
            min_valid=min_valid,
            skip_bad_files=skip_bad_files,
            date_format=date_format,
            cache=cache,
            drivers=drivers,
        )
        if (mean is None) != (std is None):
            raise ValueError('mean and std go together: give both or neither')
        given = {
            'patch_size': patch_size,
            'length': length,
            'batch_size': batch_size,
            'num_workers': num_workers,
            'val_split': val_split,
            'split_seed': split_seed,
            'min_valid': min_valid,
            'dates': dates,
            'unit': unit,
            'val_length': val_length,
        }
        for name, value in given.items():
            left_open = value is None and name in ('length', 'unit', 'val_length')
            if not left_open and not RANGES[name].holds(value):
                raise ValueError(f'{name}={value} must be {RANGES[name]}')
        self.patch_size = patch_size
        self.length = length
        self.val_length = val_length
        self.val_split = val_split
        self.split_seed = split_seed
        self.dates = dates
        self.given = None if mean is None or std is None else (mean, std)
        self.normalization: Normalization | None = None
        self.seed: int | None = None
        self._unit = unit
        self._place: dict[str, int] | None = None
        self._train_loader: ResumableDataLoader | None = None

    def __getattr__(self, name: str) -> Any:
        """Look up an argument of the scenes: they are kept once, in ``kwargs``."""
        kwargs = self.__dict__.get('kwargs', {})
        if name in kwargs:
            return kwargs[name]
        raise AttributeError(f'{type(self).__name__} has no {name}, at least not yet')

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an argument of the scenes where it is kept, and all else as ever."""
        kwargs = self.__dict__.get('kwargs', {})
        if name in kwargs:
            kwargs[name] = value
        else:
            super().__setattr__(name, value)

    @property
    def unit(self) -> float | None:
        """The raw number that stands for 1, None if unknown; after :meth:`setup`."""
        return self.scenes.unit if self._unit is None else self._unit

    @property
    def in_channels(self) -> int:
        """Number of bands of an image, known after :meth:`setup`."""
        return len(self.scenes.bands)

    @property
    def _bands(self) -> list[int | str]:
        """Bands of an image of one date."""
        return list(self.scenes.bands)

    def setup(self, stage: str) -> None:
        """Open the scenes, split the ground and make the samplers, once.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            FileNotFoundError: If *paths* names no file.
            OSError: If a file is not a readable raster.
            ValueError: If a file lacks a band or its georeference, an argument is out
                of range, no patch fits, or an epoch has no batch.
        """
        if self.dataset is not None:
            return
        size, world_size = (
            self.patch_size,
            self.trainer.world_size if self.trainer else 1,
        )
        self.scenes = self._from_first(lambda: Scenes(**self.kwargs))
        if self.cache is not None and not self._is_first:
            # a folder of that name may be something else on another machine
            self.scenes.cache = BlockCache(self.cache)
        largest = max(
            self.scenes.scenes, key=lambda scene: min(scene.height, scene.width)
        )
        if size > min(largest.height, largest.width):
            raise ValueError(
                f'patch_size={size} is larger than every scene: the largest is '
                f'{largest.path} with {largest.height} x {largest.width} pixels'
            )
        if self.given is not None:
            self._normalize(Normalization(self.scenes.bands, *self.given))

        self.split = split_by_area(self.scenes, size, self.val_split, self.split_seed)
        area, fitting = self._count_fitting()
        fitting = max(1, round(fitting * (1 - self.val_split)))
        length = fitting if self.length is None else self.length
        if length // world_size < self.batch_size:
            raise ValueError(
                f'length={length} patches per epoch in {world_size} processes give no '
                f'batch of batch_size={self.batch_size}: set a larger length or a '
                'smaller batch_size'
            )
        if self.seed is None:
            self.seed = self._broadcast(torch.initial_seed())
        self.train_sampler = RandomScenePatchSampler(
            self.scenes,
            size=size,
            length=length,
            allowed=self.split.train,
            dates=self.dates,
            seed=self.seed,
            num_replicas=world_size,
            rank=self.trainer.global_rank if self.trainer else 0,
        )
        self.val_sampler = GriddedScenePatchSampler(
            self.scenes,
            size=size,
            allowed=self.split.val,
            dates=self.dates,
            share=length / fitting,
            length=self.val_length,
        )
        self.dataset = self.scenes
        for line in describe(self.scenes, area):
            rank_zero_info(line)
        step = world_size * self.batch_size
        rank_zero_info(
            f'patches: {length // step * step} an epoch of {size} x {size} pixels, '
            f'{len(self.val_sampler)} on {self.val_split:.0%} of the ground to validate'
            + (', in pairs of dates' if self.dates == 2 else '')
        )

    def train_dataloader(self) -> DataLoader[Sample]:
        """Load random patches, each epoch other ones.

        Returns:
            The loader of training samples.
        """
        loader = self._dataloader(
            ResumableDataLoader, self.train_sampler, drop_last=True
        )
        if self._place is not None:
            loader.load_state_dict(self._place)
        self._train_loader = loader
        return loader

    def val_dataloader(self) -> DataLoader[Sample] | list[DataLoader[Sample]]:
        """Load a grid of patches on the ground set aside for validation.

        Returns:
            The loader of validation samples, or none if *val_split* is 0.
        """
        if self.val_split == 0:
            return []
        return self._dataloader(DataLoader, self.val_sampler, drop_last=False)

    def _dataloader[Loader: DataLoader[Sample]](
        self,
        kind: type[Loader],
        sampler: RandomScenePatchSampler | GriddedScenePatchSampler,
        drop_last: bool,
    ) -> Loader:
        """Load the patches of a sampler, with the statistics at hand."""
        self._find_normalization()
        return kind(
            dataset=NumberedPatches(self.scenes, sampler),
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=stack_patches,
            drop_last=drop_last,
            persistent_workers=self.num_workers > 0,
        )

    def _count_fitting(self) -> tuple[float, float]:
        """Measure the ground in m^2, and about how many patches fit without overlap."""
        fitting = 0.0
        for scene in self.scenes.scenes:
            rows, cols = scene.height // self.patch_size, scene.width // self.patch_size
            inside = 1.0
            if scene.region is not None:
                inside = min(1.0, scene.region.area / (scene.height * scene.width))
            fitting += rows * cols * inside
        ground = self.scenes.index.geometry.to_crs(EQUAL_AREA)
        area = ground.union_all().area
        seen_once = area / ground.area.sum()
        return area, fitting * min(seen_once, 1.0) if seen_once < 0.999 else fitting

    def _estimate(self) -> Normalization:
        """Estimate the statistics."""
        number = min(self.train_sampler.total_size, self.num_statistics_patches)
        patches = self.train_sampler.draw(number, self.split_seed)
        return Normalization.estimate(self.scenes, patches)
