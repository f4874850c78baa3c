# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""One scene: a grid, the files whose bands lie on it, and reads of its windows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.warp import transform_geom
from rasterio.windows import Window
from shapely.affinity import affine_transform, translate
from shapely.geometry import mapping, shape

from .cache import BlockCache
from .coverage import Coverage
from .dates import UNBOUNDED, find_interval
from .errors import GDAL_ERRORS
from .raster import band_indexes, check_raster
from .sensor import Sensor
from .source import Source

#: Longitude and latitude: the one CRS in which all footprints can be compared.
LONLAT = CRS.from_epsg(4326)

#: EASE-Grid 2.0: the CRS in which areas are compared.
EQUAL_AREA = CRS.from_epsg(6933).to_wkt()

#: Points along each edge of a footprint, so that it keeps its shape in any CRS.
EDGE_POINTS = 64

#: How far outside a footprint (degrees) a region still counts, when it is cut to it.
MARGIN = 1e-2

#: Area of a footprint below which it is none (square degrees): that of a coin.
SMALLEST = 1e-14

#: What rounding may cost a region at its edges, in pixels.
ROUNDING = 1e-2


@dataclass(frozen=True)
class Scene:
    """Rasters on one grid: what is needed to place and to read a window of them."""

    #: Files that hold the bands, in the order of the channels.
    sources: tuple[Source, ...]
    #: Rows.
    height: int
    #: Columns.
    width: int
    #: Maps (column, row) to (x, y) in *crs*.
    transform: Affine
    #: Native coordinate reference system.
    crs: CRS
    #: When it was taken, both ends included.
    interval: pd.Interval = UNBOUNDED
    #: First row and column in the files, where a region of interest starts later.
    origin: tuple[int, int] = (0, 0)
    #: Factor and summand from stored pixels to those of a sample.
    scale: float = 1.0
    offset: float = 0.0
    #: Where patches may lie, in pixels (None: everywhere).
    region: shapely.Geometry | None = None
    #: Where fill is, if patches must have a share of valid pixels.
    coverage: Coverage | None = field(default=None, compare=False)
    #: Least share of valid pixels of a patch.
    min_valid: float = 0.0

    @property
    def path(self) -> str:
        """The first file: it stands for the scene."""
        return self.sources[0].path

    @property
    def indexes(self) -> tuple[int, ...]:
        """Bands read of each file, 1-based, one for each channel."""
        return tuple(index for source in self.sources for index in source.indexes)

    @property
    def outline(self) -> shapely.Geometry:
        """Outline in pixels (x is the column), with points along its edges."""
        outline = self.region or shapely.box(0, 0, self.width, self.height)
        return shapely.segmentize(outline, max(self.width, self.height) / EDGE_POINTS)

    @property
    def footprint(self) -> shapely.Geometry:
        """Outline in longitude and latitude, cut at the antimeridian.

        Raises:
            ValueError: If the grid does not lie on the Earth.
        """
        outline = affine_transform(self.outline, self.transform.to_shapely())
        try:
            lonlat = shape(transform_geom(self.crs, LONLAT, mapping(outline)))
        except GDAL_ERRORS as error:
            raise self._nowhere(error) from error
        west, south, east, north = lonlat.bounds
        if not (-540 <= west <= east <= 540 and -90.01 <= south <= north <= 90.01):
            raise self._nowhere(f'it comes to {lonlat.bounds}')
        if not lonlat.area > SMALLEST:
            raise self._nowhere('it has no area')
        if west >= -180 and east <= 180:
            return lonlat
        turns = [translate(lonlat, turn) for turn in (-360, 0, 360)]
        world = shapely.box(-180, -90.01, 180, 90.01)
        return shapely.union_all([shapely.intersection(t, world) for t in turns])

    def eligible(
        self,
        rows: NDArray[np.int64],
        cols: NDArray[np.int64],
        size: int | NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Tell which patches lie in the region of interest and have data enough.

        Args:
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).
            size: Height and width of the patches in pixels, one or (n,).

        Returns:
            True where a patch may be used (n,).
        """
        keep = np.ones(rows.shape, dtype=np.bool_)
        if self.coverage is not None:
            keep &= self.coverage.valid(rows, cols, size) >= self.min_valid
        if self.region is not None:
            shapely.prepare(self.region)
            boxes = shapely.box(cols, rows, cols + size, rows + size)
            keep &= shapely.covers(self.region, boxes)
        return keep

    def eligible_throughout(
        self,
        rows: NDArray[np.int64],
        cols: NDArray[np.int64],
        heights: NDArray[np.int64],
        widths: NDArray[np.int64],
        size: int,
    ) -> NDArray[np.bool_]:
        """Tell in which rectangles all patches may be used.

        Args:
            rows: First rows of the rectangles (n,).
            cols: First columns of the rectangles (n,).
            heights: Their heights in pixels (n,).
            widths: Their widths in pixels (n,).
            size: Height and width of the patches in pixels.

        Returns:
            True where every patch in it has data enough and lies in the region of
            interest (n,); False where that is not sure.
        """
        keep = np.ones(rows.shape, dtype=np.bool_)
        if self.coverage is not None:
            fill = self.coverage.fill(rows, cols, heights, widths)
            keep &= fill <= (1 - self.min_valid) * size**2
        if self.region is not None:
            shapely.prepare(self.region)
            boxes = shapely.box(cols, rows, cols + widths, rows + heights)
            keep &= shapely.covers(self.region, boxes)
        return keep

    def wrap(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bring longitudes to where the grid has them: beyond 180, if it is there.

        Args:
            x: Coordinates in the scene's CRS.

        Returns:
            The same, if they are no longitudes.
        """
        if not self.crs.is_geographic:
            return x
        middle, _ = self.transform @ (self.width / 2, self.height / 2)
        wrapped: NDArray[np.float64] = middle + (x - middle + 180) % 360 - 180
        return wrapped

    def clip(self, roi: shapely.Geometry) -> 'Scene | None':
        """Cut the scene to a region of interest.

        Args:
            roi: Polygons in longitude and latitude, cut at the antimeridian.

        Returns:
            The scene, its grid cut to the bounds of the region; None if they are apart.

        Raises:
            ValueError: If the grid does not lie on the Earth.
        """
        near = shapely.intersection(roi, self.footprint.buffer(MARGIN))
        if near.is_empty:
            return None
        west, south, east, north = near.bounds
        near = shapely.segmentize(near, max(east - west, north - south) / EDGE_POINTS)
        to_crs = transformer(LONLAT, self.crs).transform
        inside = shapely.transform(near, to_crs, interleaved=False)
        inside = shapely.transform(
            inside, lambda x, y: (self.wrap(x), y), interleaved=False
        )
        inside = affine_transform(inside, (~self.transform).to_shapely())
        # mends what rounding does to edges, and to the cut at the antimeridian
        inside = shapely.make_valid(inside).buffer(ROUNDING, join_style='mitre')
        box = shapely.box(0, 0, self.width, self.height)
        if shapely.covers(inside, box):
            return self
        inside = shapely.intersection(inside, box)
        if inside.area < 1:
            return None

        left, top, right, bottom = inside.buffer(-2 * ROUNDING).bounds
        col, row = int(left), int(top)
        return replace(
            self,
            height=int(np.ceil(bottom)) - row,
            width=int(np.ceil(right)) - col,
            transform=self.transform @ Affine.translation(col, row),
            origin=(self.origin[0] + row, self.origin[1] + col),
            region=translate(inside, -col, -row).buffer(ROUNDING, join_style='mitre'),
        )

    @property
    def may_have_fill(self) -> bool:
        """Pixels may be fill."""
        return any(source.may_have_fill for source in self.sources)

    @property
    def window(self) -> Window:
        """The part of its files that the scene is."""
        return Window(self.origin[1], self.origin[0], self.width, self.height)

    def demand_valid(self, share: float, coverage: Coverage | None = None) -> 'Scene':
        """Have patches contain a share of valid pixels.

        Args:
            share: Least share of valid pixels of a patch.
            coverage: Where fill is (defaults to reading that from the files).

        Returns:
            The scene, its fill known.

        Raises:
            OSError: If a file cannot be read.
            ValueError: If it is too large to be searched for fill.
        """
        if not share or not self.may_have_fill:
            return self
        if coverage is None:
            coverage = Coverage.measure(self.sources, self.window)
        return replace(self, coverage=coverage, min_valid=share)

    def read(
        self,
        row: int,
        col: int,
        size: int,
        image: NDArray[np.float32] | None = None,
        cache: BlockCache | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read a square window.

        Args:
            row: First row of the window.
            col: First column of the window.
            size: Height and width of the window in pixels.
            image: Where to put the pixels (C, size, size) (defaults to new memory).
            cache: Where decoded blocks are kept.

        Returns:
            The pixels (C, size, size), and where they are valid (size, size): no band
            is fill by tag, mask, alpha or the value given.

        Raises:
            OSError: If a file cannot be read there.
            ValueError: If valid pixels are NaN or infinite.
        """
        window = Window(col + self.origin[1], row + self.origin[0], size, size)
        if image is None:
            image = np.empty((len(self.indexes), size, size), dtype=np.float32)
        valid = np.ones((size, size), dtype=np.bool_)
        first = 0
        for source in self.sources:
            last = first + len(source.indexes)
            part = image[first:last]
            decoded = None if cache is None else cache.load(source, window, part)
            valid &= source.read(window, part, decoded)
            first = last
        if self.scale != 1 or self.offset != 0:
            with np.errstate(over='ignore', invalid='ignore'):  # fill
                image *= np.float32(self.scale)
                image += np.float32(self.offset)
        return image, valid

    def _nowhere(self, cause: object) -> ValueError:
        """Say that the grid does not lie on the Earth."""
        return ValueError(
            f'{self.path}: its outline has no longitude and latitude; correct its '
            f'coordinate reference system or geotransform ({cause!s:.200})'
        )


@lru_cache(maxsize=256)
def transformer(source: CRS, target: CRS) -> Transformer:
    """Make a transformer of (x, y) once: that takes longer than to use it.

    Args:
        source: Coordinate reference system of what it is given.
        target: That of what it returns.

    Returns:
        The transformer.
    """
    return Transformer.from_crs(source.to_wkt(), target.to_wkt(), always_xy=True)


def open_scene(
    files: str | dict[str, str],
    sensor: Sensor,
    bands: Sequence[int | str] | None = None,
) -> Scene:
    """Make a scene of a file or of files, checking all but their pixels.

    Files of one band each may differ in resolution and extent: the scene has the grid
    of the finest, and each pixel takes the nearest of the others.

    Args:
        files: A raster file with all bands, or one file per band by its name.
        sensor: How to read them.
        bands: Names or 1-based numbers of the bands (defaults to all).

    Returns:
        The scene.

    Raises:
        OSError: If a file is not a readable raster.
        ValueError: If a file has no usable georeference, no real numbers as pixels,
            lacks a band, or has a date in its name that cannot be read.
    """
    drivers = tuple(sensor.drivers or ())
    if isinstance(files, str):
        grid = check_raster(files, drivers)
        indexes = band_indexes(files, bands, sensor.all_bands, drivers)
        sources = [Source.open(files, indexes, sensor.nodata, drivers=drivers)]
    else:
        bands = bands or sorted(files)
        missing = [band for band in bands if band not in files]
        if missing:
            raise ValueError(
                f'{next(iter(files.values()))}: of its scene the bands {missing} are '
                f'missing; there are files of {sorted(files)}'
            )
        paths = [files[str(band)] for band in bands]
        grids = [check_raster(path, drivers) for path in paths]
        grid = min(grids, key=lambda grid: grid.pixel_area)
        sources = []
        for path, own in zip(paths, grids, strict=True):
            indexes = band_indexes(path, drivers=drivers)
            if len(indexes) != 1:
                raise ValueError(
                    f'{path}: holds {len(indexes)} bands, but filename_regex says '
                    'that it holds one'
                )
            other = None if own.matches(grid) else grid
            sources.append(Source.open(path, indexes, sensor.nodata, other, drivers))
    return Scene(
        tuple(sources),
        height=grid.height,
        width=grid.width,
        transform=grid.transform,
        crs=grid.crs,
        interval=find_interval(
            sources[0].path, sensor.filename_regex, sensor.date_format
        ),
        scale=sensor.scale,
        offset=sensor.offset,
    )
