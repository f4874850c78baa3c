# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A dataset of scenes, each read in its own grid."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from operator import index as integer

import numpy as np
import pandas as pd
import torch
from geopandas import GeoDataFrame
from pyproj import CRS
from torch import Tensor
from torchgeo.datasets import GeoDataset, IntersectionDataset, UnionDataset
from torchgeo.datasets.utils import Path, Sample

from ..rasters.cache import BlockCache
from ..rasters.catalog import Catalog
from ..rasters.georeference import Georeference, encode_crs, locate
from ..rasters.patch import Patch, PatchPair, pixel_frame, resize_patch
from ..rasters.raster import close_rasters
from ..rasters.region import Region, read_region
from ..rasters.scene import LONLAT
from ..rasters.sensor import Sensor
from .batch import empty_images

#: What to do where other data sets are combined.
INSTEAD = (
    'to read them together, name several paths or sensors in one Scenes, which keeps '
    'every scene in its own grid'
)


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
        drivers: Sequence[str] | None = None,
    ) -> None:
        r"""Initialize a new Scenes instance.

        Args:
            paths: A folder (searched recursively for ``.tif`` and ``.tiff``), a file
                or a glob, or several of them; ``/vsi`` paths, URLs and names such as
                ``netcdf:"m.nc":Band1`` as GDAL knows them. Masks, metadata and world
                files beside a raster count, and it is an error where they are damaged.
            bands: Bands to read, as names or as 1-based numbers (defaults to all bands
                of the first scene, which every scene must have the same number of).
                A file of one band with a colour table has three, red, green and blue.
            nodata: Fill value in addition to those that the files declare by tag,
                mask or alpha band. NaN is no data too, unless a number is given here:
                then it is an error.
            transforms: A function that takes a sample and returns a changed one.
            all_bands: Names of the bands of a file with several, in its order (defaults
                to the file's band descriptions).
            filename_regex: A verbose regular expression of file names,
                ``.*_(?P<date>\d{8})_(?P<band>B\d+)\.TIF`` for example. The group
                ``band`` is for scenes of one file per band; ``date``, or ``start`` and
                ``stop``, tell when a scene was taken. Files that it does not match are
                left out; one that it matches without ``band`` holds all bands. Without
                it files of one band each are one scene if their names differ in the
                name of a band alone (``B02``, ``SR_B4``, ``nir``) and they show the
                same ground, unless *bands* are numbers.
            sensors: Several sensors, each with *paths*, *bands*, *nodata*, *all_bands*,
                *filename_regex*, *date_format* and *drivers* of its own in place of
                those here.
            roi: Region of interest, in which every patch lies wholly: a file of
                polygons, or [west, south, east, north] in degrees, or a polygon in
                longitude and latitude.
            min_valid: Least share of valid pixels of a patch that samplers draw. If it
                is more than 0, scenes that may have fill are read once in full: by each
                data set, or with *cache* by the first.
            skip_bad_files: If True, leave out the scenes that cannot be used and warn
                of their number; patches that cannot be read are fill.
            date_format: How dates are written, as of
                :meth:`datetime.datetime.strptime`.
            cache: Local folder in which decoded pixels are kept for other epochs, runs
                and processes: for slow storage, and where decoding takes most of the
                time. Pixels are the same with and without. For every list of bands it
                grows to their size, uncompressed, and a byte per pixel where there is
                fill; it leaves 10 GiB of its disk free, or 5 % if that is less. What is
                found out about files, their grids and their fill, is kept there too, so
                that a second start opens none. It may be deleted at any time. What
                changes on a local disk, by size or time of change, is looked at and
                decoded anew (the old blocks stay); other paths are told apart by their
                names alone, so delete the folder when such data changes. It holds
                GeoTIFF and JPEG 2000; other formats are read as without. Runs may share
                it at the same time, each block has its name when it is whole; on a
                network file system that holds as far as renaming is atomic there, and
                was not tried.
            drivers: GDAL's drivers that may open files, besides those of GeoTIFF, JPEG
                2000, netCDF, HDF5, Zarr, PNG, JPEG and VRTs of local files in these
                formats; with ``VRT`` they may lead anywhere.

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
                    drivers=None if drivers is None else list(drivers),
                )
            ]
        elif not sensors:
            raise ValueError('sensors is empty: name at least one, or leave it out')
        elif any(
            argument is not None
            for argument in (bands, all_bands, filename_regex, nodata, drivers)
        ):
            raise ValueError(
                'sensors have bands, all_bands, filename_regex, nodata and drivers of '
                'their own: leave those beside sensors out'
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
            cache=self.cache,
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
        wkts = [scene.crs.to_wkt() for scene in self.scenes]
        numbers = {wkt: number for number, wkt in enumerate(dict.fromkeys(wkts))}
        #: Number of the coordinate reference system of each scene, and all of them.
        self._crs_numbers = [numbers[wkt] for wkt in wkts]
        self._crs_texts = encode_crs(numbers)

    def __and__(self, other: GeoDataset) -> IntersectionDataset:
        """Refuse to be intersected: that would set the other data set's resolution.

        Args:
            other: Another data set.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f'Scenes & {type(other).__name__}: {INSTEAD}')

    def __or__(self, other: GeoDataset) -> UnionDataset:
        """Refuse to be united: that would set the other data set's resolution.

        Args:
            other: Another data set.

        Raises:
            TypeError: Always.
        """
        raise TypeError(f'Scenes | {type(other).__name__}: {INSTEAD}')

    @property
    def bounds(self) -> tuple[slice, slice, slice]:
        """Longitudes, latitudes and times from the first to the last, without steps."""
        west, south, east, north = self.index.total_bounds
        times = self.index.index
        return (
            slice(west, east),
            slice(south, north),
            slice(times.left.min(), times.right.max()),
        )

    @property
    def crs(self) -> CRS:
        """Coordinate reference system of the index: longitude and latitude."""
        return super().crs

    @crs.setter
    def crs(self, new_crs: CRS) -> None:
        """Refuse another one: samplers look footprints up in this one.

        Args:
            new_crs: Coordinate reference system, the same if it is to be accepted.

        Raises:
            TypeError: If it is another one.
        """
        if new_crs != self.crs:
            raise TypeError(
                'each scene of Scenes has its own coordinate reference system, and the '
                f'index longitude and latitude: it cannot be changed; {INSTEAD}'
            )

    @property
    def res(self) -> tuple[float, float]:
        """What other data sets have, and samplers of TorchGeo ask for.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            'each scene of Scenes has its own resolution, that of its transform in '
            'Scenes.scenes: draw patches with RandomScenePatchSampler or '
            f'GriddedScenePatchSampler of torchgeo_cmid.samplers; {INSTEAD}'
        )

    @res.setter
    def res(self, new_res: float | tuple[float, float]) -> None:
        """Refuse a resolution.

        Args:
            new_res: A resolution.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            'each scene of Scenes has its own resolution, which cannot be changed; '
            f'{INSTEAD}'
        )

    @property
    def unit(self) -> float | None:
        """The raw number that stands for 1: 255 if all files hold uint8, else unknown.

        A sensor that has a scale or an offset says itself what its numbers stand for.
        """
        types = {
            dtype
            for scene in self.scenes
            for source in scene.sources
            for dtype in source.dtypes
        }
        plain = all(scene.scale == 1 and scene.offset == 0 for scene in self.scenes)
        return 255.0 if plain and types == {'uint8'} else None

    def georeference(
        self, patch: Sequence[int] | Tensor, pixels: int | None = None
    ) -> Georeference:
        """Find where a patch lies, in double precision.

        ``bounds`` and ``transform`` of a sample are float32, as TorchGeo has them,
        which is up to half a metre off in UTM, and less than that under half precision.
        Integers stay what they are, so this takes those of ``patch``:

        .. code-block:: python

           for patch in batch['patch']:
               place = dataset.georeference(patch, batch['image'].shape[-1])

        Args:
            patch: Scene, row, column and size of a patch: a :class:`Patch`, or what a
                sample carries as ``patch``; of a pair ``patch[0]`` or ``patch[1]``.
            pixels: Height and width that it is shown in: of the image, which for one
                date of a pair may be others than its own (defaults to its own).

        Returns:
            Its coordinate reference system, transform and bounds.

        Raises:
            IndexError: If there is no such scene.
            TypeError: If *patch* is not four integers.
        """
        values = patch.tolist() if isinstance(patch, Tensor) else list(patch)
        if len(values) != 4 or not all(hasattr(value, '__index__') for value in values):
            raise TypeError(
                f'patch={values!r:.200} must be four integers, scene, row, column and '
                "size: a Patch, batch['patch'][i], or batch['patch'][i, date] of pairs"
            )
        scene, row, col, size = map(integer, values)
        if not 0 <= scene < len(self.scenes):
            raise IndexError(
                f'patch={values}: there is no scene {scene}, only 0 to '
                f'{len(self.scenes) - 1}'
            )
        return locate(self.scenes[scene], row, col, size, pixels or size)

    def __getitem__(self, index: Patch | PatchPair) -> Sample:  # type: ignore[override]
        """Read a patch, or two of one place.

        Fill pixels are set to their band's mean over the valid pixels of the patch (0
        where there is none), so that they carry nothing.

        Args:
            index: Address of the patch, or of two. (A slice of coordinates, which other
                datasets take, cannot say which of two overlapping scenes is meant.)

        Returns:
            ``image`` (C, H, W) float32 as stored in the file; ``valid`` (1, H, W) bool,
            False where there is no data; ``patch`` (4,) int64, scene, row, column and
            size, from which :meth:`georeference` finds the exact place; ``crs`` (L,)
            uint8, the CRS of the scene: see
            :func:`~torchgeo_cmid.datasets.decode_crs`; ``bounds`` (9,) and
            ``transform`` (9,) as :class:`~torchgeo.datasets.RasterDataset` gives them,
            in that CRS.

            For two patches ``image`` is (2 C, H, W), ``valid`` (2, H, W), ``patch``
            (2, 4) and ``crs`` (2, L), the second brought to the pixels of the first in
            number, and ``frame`` (3, 3) maps its pixels (x, y, 1) to those of the
            first; ``bounds`` and ``transform`` are the first's. If one of them has no
            data at all, the other one serves twice, and all are that one's.

        Raises:
            OSError: If the file cannot be read there.
            TypeError: If *index* is something else.
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
        if isinstance(index, Patch):
            return len(self.bands), index.size, index.size
        raise TypeError(
            'Scenes are read by a Patch(scene, row, col, size) or a PatchPair, not by '
            f'{index!r:.200}: take one from RandomScenePatchSampler or '
            'GriddedScenePatchSampler of torchgeo_cmid.samplers'
        )

    def _load(self, index: Patch | PatchPair, image: Tensor) -> Sample:
        """Read a patch, or two of one place, into a tensor."""
        sample: Sample = {'image': image}
        if isinstance(index, PatchPair):
            shown, sample['valid'], sample['frame'] = self._read_pair(index, image)
            sample['patch'] = torch.tensor(shown)
            numbers = [self._crs_numbers[patch.scene] for patch in shown]
            sample['crs'] = self._crs_texts[numbers]
            patch = shown[0]
        else:
            patch, sample['valid'] = index, self._read(index, image)
            sample['patch'] = torch.tensor(index)
            sample['crs'] = self._crs_texts[self._crs_numbers[index.scene]]
        size = image.shape[-1]  # of another one if it stands in for the first date
        _, transform, (west, south, east, north) = self.georeference(patch, size)
        times = self.scenes[patch.scene].interval
        sample['bounds'] = torch.tensor(
            [
                *(west, east, (east - west) / size),
                *(south, north, (north - south) / size),
                *(times.left.timestamp(), times.right.timestamp(), 1),
            ]
        )
        sample['transform'] = torch.tensor(tuple(transform))
        if self.transforms is not None:
            sample = self.transforms(sample)
        return sample

    def _read_pair(
        self, pair: PatchPair, image: Tensor
    ) -> tuple[PatchPair, Tensor, Tensor]:
        """Read two patches of one place; find those that are shown, and the frame."""
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
                    return pair, torch.cat([valid, other_valid]), frame
                halves[0].copy_(other)
                return PatchPair(second, second), other_valid.repeat(2, 1, 1), frame
        halves[1].copy_(halves[0])
        return PatchPair(first, first), valid.repeat(2, 1, 1), frame

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
