# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A dataset of scenes, each read in its own grid."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from geopandas import GeoDataFrame
from rasterio.transform import array_bounds
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from torchgeo.datasets import GeoDataset
from torchgeo.datasets.utils import Path, Sample

from .scene import LONLAT, find_files, open_scene


class Patch(NamedTuple):
    """Address of a square patch: what a sampler yields and :class:`Scenes` reads."""

    #: Number of the scene in the dataset.
    scene: int
    #: First row, in pixels of the scene.
    row: int
    #: First column, in pixels of the scene.
    col: int
    #: Height and width in pixels of the scene.
    size: int


class Scenes(GeoDataset):
    """A folder of GeoTIFFs, nothing warped and nothing merged.

    :class:`~torchgeo.datasets.RasterDataset` warps every file to the CRS and the
    resolution of the first. For self-supervised learning that only costs time and
    sharpness: here each scene is read in its own grid, and a patch is addressed by its
    scene, row and column. Files may differ in CRS, resolution and data type.

    The index holds the footprints in longitude and latitude; a scene's own CRS and
    resolution are those of its entry in :attr:`scenes`. No dates are read: every
    interval is unbounded.
    """

    def __init__(
        self,
        paths: Path | Iterable[Path] = 'data',
        bands: Sequence[int | str] | None = None,
        nodata: float | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
    ) -> None:
        """Initialize a new Scenes instance.

        Args:
            paths: A folder (searched recursively for ``.tif`` and ``.tiff``), a file
                or a glob, or several of them.
            bands: Bands to read, as names in the files' band descriptions or as
                1-based numbers (defaults to all bands of the first file, which every
                file must have the same number of).
            nodata: Fill value in addition to those that the files declare by tag,
                mask or alpha band.
            transforms: A function that takes a sample and returns a changed one.

        Raises:
            FileNotFoundError: If *paths* names no file.
            OSError: If a file is not a readable raster.
            ValueError: If a file lacks a band or its georeference, or if *bands* is
                not given and the files differ in their number of bands.
        """
        if bands is not None and not bands:
            raise ValueError('bands is empty: name at least one, or leave it out')
        self.paths = paths
        self.transforms = transforms
        self.scenes = [open_scene(file, bands, nodata) for file in find_files(paths)]

        first = self.scenes[0]
        for scene in self.scenes:
            if len(scene.indexes) != len(first.indexes):
                raise ValueError(
                    f'{scene.path} has {len(scene.indexes)} bands, but {first.path} '
                    f'has {len(first.indexes)}: name the bands to read with bands'
                )
        self.bands = tuple(bands or first.indexes)

        unbounded = pd.Interval(pd.Timestamp.min, pd.Timestamp.max, closed='both')
        self.index = GeoDataFrame(
            {'filepath': [scene.path for scene in self.scenes]},
            index=pd.IntervalIndex([unbounded] * len(self.scenes), name='datetime'),
            geometry=[scene.footprint for scene in self.scenes],
            crs=LONLAT.to_wkt(),
        )

    def __getitem__(self, index: Patch) -> Sample:  # type: ignore[override]
        """Read a patch.

        Fill pixels are set to their band's mean over the valid pixels of the patch (0
        where there is none), so that they carry nothing.

        Args:
            index: Address of the patch. (A slice of coordinates, which other datasets
                take, cannot say which of two overlapping scenes is meant.)

        Returns:
            ``image`` (C, H, W) float32 as stored in the file; ``valid`` (1, H, W) bool,
            False where there is no data; ``bounds`` (9,) and ``transform`` (9,) as
            :class:`~torchgeo.datasets.RasterDataset` gives them, in the CRS of the
            scene.

        Raises:
            OSError: If the file cannot be read there.
            ValueError: If pixels are not finite and not declared as no data.
        """
        scene = self.scenes[index.scene]
        image, valid = scene.read(index.row, index.col, index.size)
        if not valid.all():
            total = image.sum(axis=(1, 2), where=valid, dtype=np.float64, keepdims=True)
            mean = total / max(int(valid.sum()), 1)
            image = np.where(valid, image, mean.astype(np.float32))

        window = Window(index.col, index.row, index.size, index.size)
        transform = window_transform(window, scene.transform)
        west, south, east, north = array_bounds(index.size, index.size, transform)
        interval = self.index.index[index.scene]
        xres, yres = (east - west) / index.size, (north - south) / index.size
        sample: Sample = {
            'image': torch.from_numpy(image),
            'valid': torch.from_numpy(valid)[None],
            'bounds': self._slice_to_tensor(
                (
                    slice(west, east, xres),
                    slice(south, north, yres),
                    slice(interval.left, interval.right, 1),
                )
            ),
            'transform': torch.tensor(tuple(transform)),
        }
        if self.transforms is not None:
            sample = self.transforms(sample)
        return sample
