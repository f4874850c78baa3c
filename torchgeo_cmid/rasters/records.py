# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What was found out about the files of a sensor, kept beside the decoded blocks.

Opening a file takes milliseconds, looking at the time it was changed microseconds. So a
second start of an archive takes what the first found: of the files that are what they
were, by size and time of change of each and of all files beside it that have its name.
The others are opened as if nothing were known.

It is kept in one file for each sensor and region: numbers and text as JSON, outlines as
WKB. Nothing in it is executed, and no file is opened by a name that stands in it.
"""

import json
import os
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, cast

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.errors import CRSError
from safetensors import SafetensorError
from safetensors.numpy import load, save
from shapely.errors import ShapelyError

from .cache import DRIVERS, BlockCache
from .coverage import MAX_CELLS, Coverage
from .dates import find_interval
from .files import is_remote
from .raster import Grid, open_raster, shared_crs
from .scene import Scene
from .sensor import Sensor
from .source import Source
from .stamp import Stamps

#: Number of the format, and of the rules by which files are accepted: with another one,
#: all files are looked at anew.
FORMAT = 2


#: What a file that is whole and yet not ours makes of an attempt to read it.
STRANGE = (
    *(AttributeError, IndexError, KeyError, TypeError, ValueError),
    *(CRSError, SafetensorError, ShapelyError, zlib.error),
)


class Found(NamedTuple):
    """A scene that was opened."""

    #: The scene, cut to the region of interest.
    scene: Scene
    #: Its outline in longitude and latitude, None if it is outside of the region.
    footprint: shapely.Geometry | None


class Record(NamedTuple):
    """What is kept of a scene: what neither its name nor an argument says."""

    #: Names, sizes and times of change of its files, as JSON.
    seen: str
    #: Of each source the bands, their data types, whether there may be fill, whether
    #: they are colours of a table, and the grid that it is read in.
    sources: list[tuple[tuple[int, ...], tuple[str, ...], bool, bool, Grid | None]]
    #: Its own grid, cut to the region of interest.
    grid: Grid
    #: First row and column of that in the files.
    origin: tuple[int, int]
    #: Where patches may lie, in pixels.
    region: shapely.Geometry | None
    #: Its outline in longitude and latitude, None if it is outside of the region.
    footprint: shapely.Geometry | None


class Records:
    """What was found out about the files of one sensor."""

    def __init__(
        self, cache: BlockCache, sensor: Sensor, region: shapely.Geometry | None = None
    ) -> None:
        """Initialize a new Records instance.

        Args:
            cache: Where they are kept.
            sensor: How the files are read.
            region: Where patches may lie, in longitude and latitude.
        """
        self.cache = cache
        self.sensor = sensor
        self.stamps = Stamps()
        paths = [sensor.paths] if isinstance(sensor.paths, str) else sensor.paths
        arguments = {**vars(sensor), 'paths': [_absolute(path) for path in paths]}
        #: Other versions may read the same file in another way.
        self._versions = FORMAT, rasterio.__gdal_version__, rasterio.__proj_version__
        wkb = None if region is None else region.wkb
        self._key = (*self._versions, sorted(arguments.items()), wkb)
        self._before = self._load()
        self._now: dict[str, Record] = {}
        self._new = False

    def find(
        self, files: str | dict[str, str], bands: Sequence[int | str] | None
    ) -> Found | None:
        """Look up a scene.

        Args:
            files: Its file, or its files by band.
            bands: Bands to read.

        Returns:
            What was found when it was opened, None if that is not known, or one of its
            files has changed since.

        Raises:
            ValueError: If its name has a date that cannot be read.
        """
        name, seen = _name(files, bands), self._seen(files)
        record = self._before.get(name)
        if record is None or record.seen != seen:
            return None
        self._now[name] = record
        if isinstance(files, str):
            paths = [files]
        else:  # in the order in which open_scene has them
            paths = [files[str(band)] for band in bands or sorted(files)]
        drivers = tuple(self.sensor.drivers or ())
        sources = tuple(
            Source(
                path,
                indexes,
                self.sensor.nodata,
                grid,
                dtypes=dtypes,
                may_have_fill=may_have_fill,
                paletted=paletted,
                drivers=drivers,
            )
            for path, (indexes, dtypes, may_have_fill, paletted, grid) in zip(
                paths, record.sources, strict=True
            )
        )
        scene = Scene(
            sources,
            height=record.grid.height,
            width=record.grid.width,
            transform=record.grid.transform,
            crs=record.grid.crs,
            interval=find_interval(
                paths[0], self.sensor.filename_regex, self.sensor.date_format
            ),
            origin=record.origin,
            scale=self.sensor.scale,
            offset=self.sensor.offset,
            region=record.region,
        )
        return Found(scene, record.footprint)

    def knows(
        self, files: str | dict[str, str], bands: Sequence[int | str] | None
    ) -> bool:
        """Tell whether a scene is known.

        Args:
            files: Its file, or its files by band.
            bands: Bands to read.

        Returns:
            True if :meth:`find` would find it.
        """
        record = self._before.get(_name(files, bands))
        return record is not None and record.seen == self._seen(files)

    def keep(
        self,
        files: str | dict[str, str],
        bands: Sequence[int | str] | None,
        found: Found,
    ) -> None:
        """Keep what was found, if the files have not changed meanwhile.

        Args:
            files: The file of a scene, or its files by band.
            bands: Bands to read.
            found: The scene.
        """
        scene = found.scene
        if not self._may_be_kept(scene):
            return
        self._new = True
        self._now[_name(files, bands)] = Record(
            self._seen(files),
            [
                (s.indexes, s.dtypes, s.may_have_fill, s.paletted, s.grid)
                for s in scene.sources
            ],
            Grid(scene.crs, scene.transform, scene.height, scene.width),
            scene.origin,
            scene.region,
            found.footprint,
        )

    def save(self) -> None:
        """Write what is known by now, if it is not what was known before."""
        if not self._new and self._now.keys() == self._before.keys():
            return
        systems: dict[str, int] = {}
        shapes: list[bytes] = []

        def plain_grid(grid: Grid | None) -> list[Any] | None:
            if grid is None:
                return None
            wkt, *rest = grid.key
            return [systems.setdefault(wkt, len(systems)), *rest]

        def plain_shape(shape: shapely.Geometry | None) -> int | None:
            if shape is None:
                return None
            shapes.append(shape.wkb)
            return len(shapes) - 1

        scenes = {
            name: [
                record.seen,
                [[*source[:4], plain_grid(source[4])] for source in record.sources],
                plain_grid(record.grid),
                record.origin,
                plain_shape(record.region),
                plain_shape(record.footprint),
            ]
            for name, record in self._now.items()
        }
        text = json.dumps({'scenes': scenes, 'systems': list(systems)})
        content: dict[str, NDArray[Any]] = {
            'text': np.frombuffer(text.encode(), np.uint8),
            'shapes': np.frombuffer(b''.join(shapes), np.uint8),
            'ends': np.cumsum([len(wkb) for wkb in shapes], dtype=np.int64),
        }
        self.cache.keep('records', self._key, save(content))

    def find_coverage(self, scene: Scene) -> Coverage | None:
        """Look up where a scene has fill.

        Args:
            scene: The scene.

        Returns:
            Where that was found to be, None if it is not known.
        """
        content = self.cache.find('coverage', self._coverage_key(scene))
        if content is None:
            return None
        try:
            coverage = Coverage.unpack(content)
        except STRANGE:
            return None
        return coverage if coverage.fits(scene.window) else None

    def keep_coverage(self, scene: Scene, coverage: Coverage) -> None:
        """Keep where a scene has fill, if its files have not changed meanwhile.

        Args:
            scene: The scene.
            coverage: Where it has fill.
        """
        if self._may_be_kept(scene):
            self.cache.keep('coverage', self._coverage_key(scene), coverage.pack())

    def _seen(self, files: str | dict[str, str]) -> str:
        """Tell what was seen of the files of a scene before they were opened."""
        paths = [files] if isinstance(files, str) else list(files.values())
        return json.dumps([self.stamps.first(path) for path in paths])

    def _may_be_kept(self, scene: Scene) -> bool:
        """Tell whether any change of a scene would show in the stamps of its files."""
        return all(
            self.stamps.unchanged(source.path)
            and open_raster(source.path, drivers=source.drivers).driver in DRIVERS
            for source in scene.sources
        )

    def _coverage_key(self, scene: Scene) -> object:
        """List all that the fill of a scene depends on."""
        sources = [
            (
                _absolute(source.path),
                source.indexes,
                source.nodata,
                None if source.grid is None else source.grid.key,
                self.stamps.first(source.path),
            )
            for source in scene.sources
        ]
        return *self._versions, sources, scene.window.flatten(), MAX_CELLS

    def _load(self) -> dict[str, Record]:
        """Read what was known before: nothing if it is not what we write."""
        content = self.cache.find('records', self._key)
        if content is None:
            return {}
        try:
            arrays = load(content)
            text = json.loads(arrays['text'].tobytes())
            systems = [shared_crs(wkt) for wkt in text['systems']]
            wkb, ends = arrays['shapes'].tobytes(), [0, *arrays['ends'].tolist()]
            shapes = shapely.from_wkb([wkb[i:j] for i, j in pairwise(ends)])

            def grid(plain: list[Any] | None) -> Grid | None:
                if plain is None:
                    return None
                number, transform, height, width = plain
                return Grid(systems[number], Affine(*transform[:6]), height, width)

            return {
                name: Record(
                    seen,
                    [
                        (tuple(indexes), tuple(dtypes), fill, colors, grid(other))
                        for indexes, dtypes, fill, colors, other in sources
                    ],
                    cast(Grid, grid(own)),
                    (origin[0], origin[1]),
                    None if region is None else shapes[region],
                    None if footprint is None else shapes[footprint],
                )
                for name, (seen, sources, own, origin, region, footprint) in text[
                    'scenes'
                ].items()
            }
        except STRANGE:
            return {}


def _absolute(path: str) -> str:
    """Name a file in a way that holds in any folder."""
    return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))


def _name(files: str | dict[str, str], bands: Sequence[int | str] | None) -> str:
    """Name a scene by its files and the bands wanted of them."""
    if isinstance(files, str):
        return json.dumps([bands, _absolute(files)])
    return json.dumps([bands, {band: _absolute(path) for band, path in files.items()}])
