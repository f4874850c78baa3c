# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A dataset of scenes, each read in its own grid."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from geopandas import GeoDataFrame
from rasterio import Affine
from rasterio.transform import array_bounds
from rasterio.windows import Window
from rasterio.windows import transform as window_transform
from torch import Tensor
from torchgeo.datasets import GeoDataset
from torchgeo.datasets.utils import Path, Sample

from ..rasters.cache import BlockCache
from ..rasters.catalog import Catalog
from ..rasters.patch import Patch, PatchPair, pixel_frame, resize_patch
from ..rasters.raster import close_rasters
from ..rasters.region import Region, read_region
from ..rasters.scene import LONLAT
from ..rasters.sensor import Sensor
from .batch import empty_images


class Scenes(GeoDataset):
    """Rasters of any kind, nothing warped and nothing merged.

    :class:`~torchgeo.datasets.RasterDataset` warps every file to the CRS and the
    resolution of the first. For self-supervised learning that only costs time and
    sharpness: here each scene is read in its own grid, and a patch is addressed by its
    scene, row and column. Files may differ in CRS, resolution and data type.

    The index holds the footprints in longitude and latitude; a scene's own CRS and
    resolution are those of its entry in :attr:`scenes`. Times are read from the names
    of files, where *filename_regex* says how; they are unbounded elsewhere.
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
        date_format: str = '%Y%m%d',
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
            filename_regex: A verbose regular expression of file names,
                ``.*_(?P<date>\d{8})_(?P<band>B\d+)\.TIF`` for example. The group
                ``band`` is for scenes of one file per band; ``date``, or ``start`` and
                ``stop``, tell when a scene was taken. Files that it does not match are
                left out; one that it matches without ``band`` holds all bands.
            sensors: Several sensors, each with *paths*, *bands*, *nodata*, *all_bands*,
                *filename_regex* and *date_format* of its own in place of those here.
            roi: Region of interest, in which every patch lies wholly: a file of
                polygons, or [west, south, east, north] in degrees, or a polygon in
                longitude and latitude.
            min_valid: Least share of valid pixels of a patch that samplers draw. If it
                is more than 0, scenes that may have fill are read once in full.
            skip_bad_files: If True, leave out the scenes that cannot be used and warn
                of their number; patches that cannot be read are fill.
            date_format: How dates are written, as of
                :meth:`datetime.datetime.strptime`.
            cache: Local folder in which decoded pixels are kept for other epochs, runs
                and processes: for slow storage, and where decoding takes most of the
                time. Pixels are the same with and without. For every list of bands it
                grows to their size, uncompressed, and a byte per pixel where there is
                fill; it leaves 10 GiB of its disk free, or 5 % if that is less. It may
                be deleted at any time. What changes on a local disk is decoded anew
                (the old blocks stay); other paths are told apart by their names alone,
                so delete the folder when such data changes. It holds GeoTIFF and JPEG
                2000; other formats are read as without.

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
                    bands=None if bands is None else list(bands),
                    all_bands=None if all_bands is None else list(all_bands),
                    filename_regex=filename_regex,
                    date_format=date_format,
                    nodata=nodata,
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

        close_rasters()  # files may have changed since another dataset opened them
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

        intervals = [scene.interval for scene in self.scenes]
        self.index = GeoDataFrame(
            {'filepath': [scene.path for scene in self.scenes]},
            index=pd.IntervalIndex(intervals, closed='both', name='datetime'),
            geometry=catalog.footprints,
            crs=LONLAT.to_wkt(),
        )

    def __getitem__(self, index: Patch | PatchPair) -> Sample:  # type: ignore[override]
        """Read a patch, or two of one place.

        Fill pixels are set to their band's mean over the valid pixels of the patch (0
        where there is none), so that they carry nothing.

        Args:
            index: Address of the patch, or of two. (A slice of coordinates, which other
                datasets take, cannot say which of two overlapping scenes is meant.)

        Returns:
            ``image`` (C, H, W) float32 as stored in the file; ``valid`` (1, H, W) bool,
            False where there is no data; ``bounds`` (9,) and ``transform`` (9,) as
            :class:`~torchgeo.datasets.RasterDataset` gives them, in the CRS of the
            scene.

            For two patches ``image`` is (2 C, H, W) and ``valid`` (2, H, W), the second
            brought to the pixels of the first in number, and ``frame`` (3, 3) maps its
            pixels (x, y, 1) to those of the first; ``bounds`` and ``transform`` are the
            first's. If one of them has no data at all, the other one serves twice, and
            they are that one's.

        Raises:
            OSError: If the file cannot be read there.
            ValueError: If pixels are not finite and not declared as no data.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[Patch | PatchPair]) -> list[Sample]:
        """Read the patches of a batch: a data loader asks for them together.

        Args:
            indices: Addresses of the patches, or of pairs.

        Returns:
            Their samples. If the patches are of one size, all images lie in the memory
            of one batch: see :func:`~torchgeo_cmid.datasets.batch.stack_patches`.

        Raises:
            OSError: If a file cannot be read there.
            ValueError: If pixels are not finite and not declared as no data.
        """
        shapes = {self._shape(index) for index in indices}
        if len(shapes) > 1:
            return [self[index] for index in indices]
        images = empty_images(len(indices), *shapes.pop())
        samples = zip(indices, images, strict=True)
        return [self._load(index, image) for index, image in samples]

    def _shape(self, index: Patch | PatchPair) -> tuple[int, int, int]:
        """Tell the shape of an image."""
        if isinstance(index, PatchPair):
            return 2 * len(self.bands), index.first.size, index.first.size
        return len(self.bands), index.size, index.size

    def _load(self, index: Patch | PatchPair, image: Tensor) -> Sample:
        """Read a patch, or two of one place, into a tensor."""
        sample: Sample = {'image': image}
        if isinstance(index, PatchPair):
            patch, sample['valid'], sample['frame'] = self._read_pair(index, image)
        else:
            patch, sample['valid'] = index, self._read(index, image)
        scene = self.scenes[patch.scene]
        window = Window(patch.col, patch.row, patch.size, patch.size)
        transform = window_transform(window, scene.transform)
        size = image.shape[-1]  # of another one if it stands in for the first date
        transform = transform @ Affine.scale(patch.size / size)
        west, south, east, north = array_bounds(size, size, transform)
        xres, yres = (east - west) / size, (north - south) / size
        sample['bounds'] = self._slice_to_tensor(
            (
                slice(west, east, xres),
                slice(south, north, yres),
                slice(scene.interval.left, scene.interval.right, 1),
            )
        )
        sample['transform'] = torch.tensor(tuple(transform))
        if self.transforms is not None:
            sample = self.transforms(sample)
        return sample

    def _read_pair(
        self, pair: PatchPair, image: Tensor
    ) -> tuple[Patch, Tensor, Tensor]:
        """Read two patches of one place; find the first one shown, and the frame."""
        first, second = pair
        halves = image.chunk(2)
        valid = self._read(first, halves[0])
        frame = torch.eye(3)
        if second != first:
            size = first.size
            other = image.new_empty(len(self.bands), second.size, second.size)
            other_valid = self._read(second, other)
            if second.size != size:
                other, other_valid = resize_patch(other, other_valid, size)
                _fill(other, other_valid)
            if other_valid.any():
                halves[1].copy_(other)
                if valid.any():
                    scenes = self.scenes[first.scene], self.scenes[second.scene]
                    frame = torch.from_numpy(pixel_frame(scenes, pair, size)).float()
                    return first, torch.cat([valid, other_valid]), frame
                halves[0].copy_(other)
                return second, other_valid.repeat(2, 1, 1), frame
        halves[1].copy_(halves[0])
        return first, valid.repeat(2, 1, 1), frame

    def _read(self, patch: Patch, image: Tensor) -> Tensor:
        """Read a patch into a tensor, as fill if it is a bad file to be skipped."""
        scene = self.scenes[patch.scene]
        try:
            pixels = scene.read(
                patch.row, patch.col, patch.size, image.numpy(), self.cache
            )[1]
            valid = torch.from_numpy(pixels)[None]
        except (OSError, ValueError) as error:
            if not self.skip_bad_files:
                raise
            warnings.warn(f'patch taken as fill: {error}', stacklevel=2)
            image.zero_()
            return torch.zeros(1, patch.size, patch.size, dtype=torch.bool)
        _fill(image, valid)
        return valid


def _fill(image: Tensor, valid: Tensor) -> None:
    """Set fill pixels of a patch to the mean of the valid ones, in place."""
    if valid.all():
        return
    pixels, where = image.numpy(), valid.numpy()
    total = pixels.sum(axis=(1, 2), where=where, dtype=np.float64, keepdims=True)
    mean = total / max(int(where.sum()), 1)
    np.copyto(pixels, mean.astype(np.float32), where=~where)
