# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""One raster file: opened once per process, and checked without its pixels."""

import atexit
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT

from .errors import GDAL_ERRORS
from .files import container, is_remote
from .opening import FORMATS, check_whole, environment, open_allowed
from .stamp import Stamp

#: Length of a degree of latitude.
METRES_PER_DEGREE = 111_320

#: Most bands that a file may claim where none are named: above any real sensor's.
MAX_BANDS = 4096

#: Largest block that GDAL may have to decode for a single pixel, in bytes.
MAX_BLOCK_BYTES = 2**29

#: Bands that a file with a colour table is shown as.
COLORS = ('red', 'green', 'blue')


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie."""

    crs: CRS
    #: Maps (column, row) to (x, y) in *crs*.
    transform: Affine
    height: int
    width: int

    @property
    def key(self) -> tuple[str, tuple[float, ...], int, int]:
        """Plain values that tell it from any other grid."""
        return self.crs.to_wkt(), tuple(self.transform), self.height, self.width

    @property
    def pixel_area(self) -> float:
        """About the ground area of the middle pixel, in square metres."""
        area = abs(self.transform.determinant)
        if self.crs.is_geographic:
            _, latitude = self.transform @ (self.width / 2, self.height / 2)
            return float(area * METRES_PER_DEGREE**2 * math.cos(math.radians(latitude)))
        return float(area * self.crs.linear_units_factor[1] ** 2)

    def matches(self, other: 'Grid') -> bool:
        """Tell whether each pixel of another grid is the same piece of ground.

        Args:
            other: The other grid.

        Returns:
            True if both agree to a thousandth of a pixel.
        """
        shape = (self.height, self.width) == (other.height, other.width)
        if not shape or self.crs != other.crs:
            return False
        corners = [(0, 0), (self.width, 0), (0, self.height)]
        return all(
            math.dist(corner, ~self.transform @ (other.transform @ corner)) < 1e-3
            for corner in corners
        )


def check_raster(path: str, drivers: tuple[str, ...] = ()) -> Grid:
    """Open a file and check all that can be checked without its pixels.

    Args:
        path: Raster file.
        drivers: GDAL's drivers that may open it, besides those of the short list.

    Returns:
        Its grid.

    Raises:
        OSError: If it is not a readable raster.
        ValueError: If it has no usable georeference, no real numbers as pixels, or
            blocks too large to decode.
    """
    with refused(path):
        return _check(path, drivers)


def band_indexes(
    path: str,
    bands: Sequence[int | str] | None = None,
    names: Sequence[str] | None = None,
    drivers: tuple[str, ...] = (),
) -> tuple[int, ...]:
    """Look up the 1-based numbers of bands in a file.

    A file of one band with a colour table has three: red, green and blue.

    Args:
        path: Raster file.
        bands: Names or 1-based numbers (defaults to all bands but alpha).
        names: Names of the bands but alpha, in the order of the file (defaults to the
            file's band descriptions).
        drivers: GDAL's drivers that may open it, besides those of the short list.

    Returns:
        The numbers.

    Raises:
        ValueError: If the file lacks a band, or another number of bands than named.
    """
    src = open_raster(path, drivers=drivers)
    if src.count > MAX_BANDS and bands is None:
        raise ValueError(
            f'{path}: claims {src.count} bands; name those to read with bands'
        )
    with refused(path):
        colors, described = src.colorinterp, src.descriptions
    indexes: Sequence[int] = src.indexes
    if is_paletted(src):
        indexes, described = (1, 2, 3), COLORS
        colors = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]
    images = [i for i in indexes if colors[i - 1] != ColorInterp.alpha]
    if names is not None and len(names) != len(images):
        raise ValueError(
            f'{path} has {len(images)} bands, but all_bands names {len(names)}: '
            f'{list(names)}'
        )
    if bands is None:
        if not images:
            raise ValueError(f'{path}: has no band but alpha')
        return tuple(images)
    known: dict[int | str, int] = {
        name: i for i, name in enumerate(described, 1) if name
    }
    known |= dict(zip(names or (), images if names else (), strict=True))
    known |= {i: i for i in indexes}
    for band in bands:
        if band not in known:
            shown = [*list(known)[:20], *['...'] * (len(known) > 20)]
            raise ValueError(f'{path}: no band {band!r}; the file has {shown}')
    return tuple(known[band] for band in bands)


def is_paletted(src: DatasetReader | WarpedVRT) -> bool:
    """Tell whether a file holds numbers of colours in a table.

    Args:
        src: The open file.

    Returns:
        True if its only band, besides alpha, does.
    """
    colors: list[ColorInterp] = [c for c in src.colorinterp if c != ColorInterp.alpha]
    return colors == [ColorInterp.palette]


def open_raster(
    path: str,
    grid: Grid | None = None,
    stamp: Stamp | None = None,
    drivers: tuple[str, ...] = (),
) -> DatasetReader | WarpedVRT:
    """Open a file once per process: handles do not survive a fork.

    Args:
        path: Raster file. With an ending of GeoTIFFs it is opened as such only: what a
            file's content names (a VRT's sources, say) is never followed unasked.
        grid: Grid to see it in, by nearest neighbour (defaults to its own).
        stamp: What the file was when it was last looked at: with another stamp it is
            opened anew.
        drivers: GDAL's drivers that may open it, besides those of the short list.

    Returns:
        The open file.
    """
    return _open(path, grid, stamp, drivers, os.getpid())


@lru_cache(maxsize=128)
def _open(
    path: str,
    grid: Grid | None,
    stamp: Stamp | None,
    drivers: tuple[str, ...],
    pid: int,
) -> DatasetReader | WarpedVRT:
    """Open a file, in this process."""
    if grid is not None:
        src = open_raster(path, None, stamp, drivers)
        alpha = ColorInterp.alpha in src.colorinterp or all(
            MaskFlags.nodata in flags for flags in src.mask_flag_enums
        )
        with environment():
            return WarpedVRT(
                src,
                crs=grid.crs,
                transform=grid.transform,
                height=grid.height,
                width=grid.width,
                resampling=Resampling.nearest,
                add_alpha=not alpha,  # tells where the file ends
            )
    with warnings.catch_warnings():
        # check_raster refuses such files, by name
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        return open_allowed(path, drivers)


def close_rasters() -> None:
    """Close all files of this process, so that they are read as they are now."""
    _open.cache_clear()


@contextmanager
def refused(path: str) -> Iterator[None]:
    """Say which file GDAL cannot make sense of.

    Args:
        path: The file.

    Yields:
        Nothing.

    Raises:
        OSError: If what is done here fails.
    """
    try:
        yield
    except UnicodeEncodeError as error:
        raise OSError(f'{path!r}: its name is not UTF-8; rename it') from error
    except GDAL_ERRORS as error:
        raise OSError(
            f'{path}: not a readable raster ({FORMATS}); replace, remove or exclude '
            f'it, or name the GDAL driver of its format in drivers ({error!s:.200})'
        ) from error


def _check(path: str, drivers: tuple[str, ...]) -> Grid:
    """Check what GDAL tells of a file."""
    src = open_raster(path, drivers=drivers)
    if src.count == 0:
        names = f', but holds {src.subdatasets}: name one of them' * bool(
            src.subdatasets
        )
        raise ValueError(f'{path}: has no bands{names}')
    if src.crs is None or src.transform.is_identity:
        raise ValueError(_say_where_to_lay_it(src, path))
    if not np.isfinite(src.transform).all() or src.transform.determinant == 0:
        raise ValueError(
            f'{path}: its geotransform {tuple(src.transform)[:6]} makes pixels without '
            'size or place; correct it, for example with gdal_edit'
        )
    rows, cols = _decoded_at_once(src)
    layers = src.count if src.profile.get('interleave') == 'pixel' else 1
    size = rows * cols * layers * max(map(_bytes, src.dtypes))
    if size > MAX_BLOCK_BYTES:
        raise ValueError(
            f'{path}: its blocks of {rows} x {cols} pixels take {size / 2**20:.0f} MiB '
            f'each, more than the {MAX_BLOCK_BYTES / 2**20:.0f} MiB that one patch may '
            'cost; convert it to a COG with gdal_translate -of COG'
        )
    # one object for all files, and the one that other processes get; made before blocks
    # are looked up, since it would clear the error of a table of blocks that is none
    crs = shared_crs(src.crs.to_wkt())
    if src.driver == 'GTiff' and not is_remote(container(path)):
        check_whole(src, container(path))
    return Grid(crs, src.transform, src.height, src.width)


@lru_cache(maxsize=1024)
def shared_crs(wkt: str) -> CRS:
    """Make a coordinate reference system once.

    Args:
        wkt: What it is.

    Returns:
        The coordinate reference system, the same object for the same text.
    """
    return CRS.from_wkt(wkt)


def _decoded_at_once(src: DatasetReader) -> tuple[int, int]:
    """Rows and columns that have to be decoded for any pixel of them, at most."""
    rows, cols = max(src.block_shapes, key=math.prod)
    if src.driver != 'GTiff' or rows > 1 or cols < src.width or not src.compression:
        return rows, cols
    # GDAL shows one strip of all rows as rows, yet decodes it from its start
    first, second = (
        src.get_tag_item(f'BLOCK_OFFSET_0_{row}', 'TIFF', bidx=1) for row in (0, 1)
    )
    return (src.height if first and not second else rows), cols


def _bytes(dtype: str) -> int:
    """Bytes of a pixel; NumPy has no complex integers."""
    return 8 if dtype.startswith('complex_int') else np.dtype(dtype).itemsize


def _say_where_to_lay_it(src: DatasetReader, path: str) -> str:
    """Say what a file lacks to have a place, and how it can be given one."""
    points, crs = src.gcps
    target = '-t_srs EPSG:4326 -r near -dstalpha'
    if points:
        source = '' if crs else ' -s_srs EPSG:...'
        return (
            f'{path}: no geotransform, only {len(points)} ground control points; lay '
            f"it on a grid with gdalwarp{source} -tps {target} '{path}' out.tif"
        )
    if src.rpcs is not None:
        return (
            f'{path}: no geotransform, only rational polynomial coefficients (RPC); '
            f"lay it on a grid with gdalwarp -rpc {target} '{path}' out.tif"
        )
    lacking = 'coordinate reference system' if src.crs is None else 'geotransform'
    return (
        f'{path}: no {lacking}; georeference the file, for example with gdal_edit, or '
        'use ImageFolderDataModule, which needs none'
    )


# Handles that outlive the modules they need complain when the interpreter ends.
atexit.register(close_rasters)
