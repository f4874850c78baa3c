# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A dataset of scenes, each read in its own grid."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from geopandas import GeoDataFrame
from numpy.typing import NDArray
from rasterio.transform import array_bounds
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from torch import Tensor
from torchgeo.datasets import GeoDataset
from torchgeo.datasets.utils import Path, Sample

from .batch import empty_images
from .cache import BlockCache
from .catalog import Catalog
from .region import Region, read_region
from .scene import LONLAT, Scene
from .sensor import Sensor


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
    """Rasters of any kind, nothing warped and nothing merged.

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
        *,
        all_bands: Sequence[str] | None = None,
        filename_regex: str | None = None,
        sensors: Sequence[Sensor] | None = None,
        roi: Region | None = None,
        min_valid: float = 0.0,
        skip_bad_files: bool = False,
        cache: str | None = None,
    ) -> None:
        r"""Initialize a new Scenes instance.

        Args:
            paths: A folder (searched recursively for ``.tif`` and ``.tiff``), a file
                or a glob, or several of them; ``/vsi`` paths and URLs as GDAL knows
                them.
            bands: Bands to read, as names or as 1-based numbers (defaults to all bands
                of the first scene, which every scene must have the same number of).
            nodata: Fill value in addition to those that the files declare by tag,
                mask or alpha band (NaN is allowed).
            transforms: A function that takes a sample and returns a changed one.
            all_bands: Names of the bands of a file with several, in its order (defaults
                to the file's band descriptions).
            filename_regex: For scenes of one file per band: a verbose regular
                expression with a group ``band``, ``.*_(?P<band>B\d+)\.TIF`` for
                example. Files that it does not match are left out; one that it matches
                without the group holds all bands of its scene.
            sensors: Several sensors, each with *paths*, *bands*, *nodata*, *all_bands*
                and *filename_regex* of its own in place of those above.
            roi: Region of interest, in which every patch lies wholly: a file of
                polygons, or [west, south, east, north] in degrees, or a polygon in
                longitude and latitude.
            min_valid: Least share of valid pixels of a patch that samplers draw. If it
                is more than 0, scenes that may have fill are read once in full.
            skip_bad_files: If True, leave out the scenes that cannot be used and warn
                of their number; patches that cannot be read are fill.
            cache: Local folder in which decoded pixels are kept for other epochs, runs
                and processes: for slow storage, and where decoding takes most of the
                time. Pixels are the same with and without. It grows to at most the
                size of the bands read, uncompressed, and leaves 10 GiB of its disk
                free, or 5 % if that is less; it may be deleted at any time. What
                changes on a local disk is decoded anew; other paths are told apart by
                their names alone, so delete the folder when such data changes. It holds
                GeoTIFF and JPEG 2000; other formats are read as without.

        Raises:
            FileNotFoundError: If *paths* or *roi* names no file.
            OSError: If a file is not a readable raster.
            ValueError: If a file lacks a band or its georeference, if *bands* is not
                given and the scenes differ in their number of bands, if an argument is
                out of range, if *cache* holds something else, or if no scene is left.
        """
        if not 0 <= min_valid <= 1:
            raise ValueError(f'min_valid={min_valid} must be at least 0 and at most 1')
        if sensors is None:
            listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
            sensors = [
                Sensor(
                    [os.fspath(path) for path in listed],
                    None if bands is None else list(bands),
                    None if all_bands is None else list(all_bands),
                    filename_regex,
                    nodata,
                )
            ]
        elif not sensors:
            raise ValueError('sensors is empty: name at least one, or leave it out')
        elif any(i is not None for i in (bands, all_bands, filename_regex, nodata)):
            raise ValueError(
                'sensors have bands, all_bands, filename_regex and nodata of their '
                'own: leave those beside sensors out'
            )
        self.paths = paths
        self.transforms = transforms
        self.skip_bad_files = skip_bad_files
        self.cache = None if cache is None else BlockCache(cache)

        catalog = Catalog(
            region=None if roi is None else read_region(roi),
            min_valid=min_valid,
            skip_bad_files=skip_bad_files,
        )
        for sensor in sensors:
            catalog.add(sensor)
        catalog.finish([sensor.paths for sensor in sensors])
        self.scenes = catalog.scenes
        #: Bands of a sample, by the name or number they have in the first scene.
        self.bands = catalog.bands
        #: Files that stand for scenes that cannot be used, and why.
        self.skipped = catalog.skipped

        unbounded = pd.Interval(pd.Timestamp.min, pd.Timestamp.max, closed='both')
        self.index = GeoDataFrame(
            {'filepath': [scene.path for scene in self.scenes]},
            index=pd.IntervalIndex([unbounded] * len(self.scenes), name='datetime'),
            geometry=catalog.footprints,
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
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Patch]) -> list[Sample]:
        """Read the patches of a batch: a data loader asks for them together.

        Args:
            indices: Addresses of the patches.

        Returns:
            Their samples. If the patches are of one size, all images lie in the memory
            of one batch: see :func:`~torchgeo_cmid.datasets.batch.stack_patches`.

        Raises:
            OSError: If a file cannot be read there.
            ValueError: If pixels are not finite and not declared as no data.
        """
        sizes = {index.size for index in indices}
        if len(sizes) > 1:
            return [self[index] for index in indices]
        images = empty_images(len(indices), len(self.bands), *(2 * list(sizes)))
        samples = zip(indices, images, strict=True)
        return [self._load(index, image) for index, image in samples]

    def _load(self, index: Patch, tensor: Tensor) -> Sample:
        """Read a patch into a tensor."""
        scene, image = self.scenes[index.scene], tensor.numpy()
        valid = self._read(scene, index, image)
        if not valid.all():
            total = image.sum(axis=(1, 2), where=valid, dtype=np.float64, keepdims=True)
            mean = total / max(int(valid.sum()), 1)
            np.copyto(image, mean.astype(np.float32), where=~valid)

        window = Window(index.col, index.row, index.size, index.size)
        transform = window_transform(window, scene.transform)
        west, south, east, north = array_bounds(index.size, index.size, transform)
        interval = self.index.index[index.scene]
        xres, yres = (east - west) / index.size, (north - south) / index.size
        sample: Sample = {
            'image': tensor,
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

    def _read(
        self, scene: Scene, patch: Patch, image: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Read a patch, as fill if it is unreadable and bad files are to be skipped."""
        try:
            return scene.read(patch.row, patch.col, patch.size, image, self.cache)[1]
        except (OSError, ValueError) as error:
            if not self.skip_bad_files:
                raise
            warnings.warn(f'patch taken as fill: {error}', stacklevel=2)
            image[:] = 0
            return np.zeros((patch.size, patch.size), dtype=np.bool_)
