# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""One raster file: opened once per process, checked without its pixels, read."""

import atexit
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError  # what rasterio.warp raises
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from .files import EXTENSIONS, is_remote

#: Length of a degree of latitude.
METRES_PER_DEGREE = 111_320

#: Most bands that a file may claim where none are named: above any real sensor's.
MAX_BANDS = 4096

#: Largest block that GDAL may have to decode for a single pixel, in bytes.
MAX_BLOCK_BYTES = 2**29

#: Data types that float32 holds without loss.
EXACT = {'uint8', 'int8', 'uint16', 'int16', 'float32'}

#: Blocks whose place in a GeoTIFF is looked up, to find out whether it is whole.
CHECKED_BLOCKS = 64


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a raster lie."""

    crs: CRS
    #: Maps (column, row) to (x, y) in *crs*.
    transform: Affine
    height: int
    width: int

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


@dataclass(frozen=True)
class Source:
    """A raster file, the bands wanted of it, and the grid to read it in."""

    #: File that holds the pixels.
    path: str
    #: Bands to read, 1-based.
    indexes: tuple[int, ...]
    #: Fill value in addition to those that the file declares (NaN is allowed).
    nodata: float | None = None
    #: Grid to read in (None: its own). Each pixel takes the nearest one of the file, so
    #: that fill never mixes with data.
    grid: Grid | None = None

    def has_fill(self) -> bool:
        """Tell whether pixels may be fill."""
        with _refused(self.path):
            flags = open_raster(self.path, self.grid).mask_flag_enums
        declared = any(flags[i - 1] != [MaskFlags.all_valid] for i in self.indexes)
        return self.nodata is not None or declared

    def read(
        self, window: Window, image: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Read a window.

        Args:
            window: The window.
            image: Where to put the pixels (C, H, W).

        Returns:
            Where no band is fill (H, W).

        Raises:
            OSError: If the file cannot be read there.
            ValueError: If valid pixels are NaN or infinite.
        """
        try:
            src = open_raster(self.path, self.grid)
            # straight to float32 where that is exact: it saves a copy of all bands
            exact = image is not None and set(src.dtypes) <= EXACT
            data = src.read(self.indexes, window=window, out=image if exact else None)
        except (RasterioError, CPLE_BaseError) as error:
            raise self._unreadable(window, error) from error
        valid = self._valid(src, window, data)

        if src.dtypes[0][0] == 'f':
            largest = np.finfo(np.float32).max  # what is larger has no float32
            usable = (np.abs(data) <= largest).all(axis=0)
            if not usable[valid].all():
                raise ValueError(
                    f'{self._where(window)}: pixels that are NaN or infinite and not '
                    'declared as no data; for NaN set nodata to .nan, or repair the '
                    'file'
                )
        if image is not None and not exact:
            with np.errstate(over='ignore'):  # fill that is too large becomes infinite
                image[:] = data
        return valid

    def valid(self, window: Window) -> NDArray[np.bool_]:
        """Tell where no band is fill, reading no more than that takes.

        Args:
            window: The window.

        Returns:
            True where all bands are valid (H, W).

        Raises:
            OSError: If the file cannot be read there.
            ValueError: If valid pixels are NaN or infinite.
        """
        src = open_raster(self.path, self.grid)
        if self.nodata is not None or any(dtype[0] == 'f' for dtype in src.dtypes):
            return self.read(window)
        return self._valid(src, window, None)

    def _valid(
        self, src: DatasetReader, window: Window, data: NDArray[np.generic] | None
    ) -> NDArray[np.bool_]:
        """Combine what the file declares and what the user says."""
        shape = (round(window.height), round(window.width))
        valid = np.ones(shape, dtype=np.bool_)
        flags = src.mask_flag_enums
        if any(flags[i - 1] != [MaskFlags.all_valid] for i in self.indexes):
            shared = MaskFlags.per_dataset in flags[self.indexes[0] - 1]
            indexes = self.indexes[:1] if shared else self.indexes
            try:
                valid = src.read_masks(indexes, window=window).all(axis=0)
            except (RasterioError, CPLE_BaseError) as error:
                raise self._unreadable(window, error) from error
        if self.nodata is not None and data is not None:
            fill = np.isnan(data) if np.isnan(self.nodata) else data == self.nodata
            valid &= ~fill.any(axis=0)
        return valid

    def _where(self, window: Window) -> str:
        """Name the place of a window."""
        (top, bottom), (left, right) = window.toranges()
        return f'{self.path}, rows {top} to {bottom}, columns {left} to {right}'

    def _unreadable(self, window: Window, error: Exception) -> OSError:
        """Say what cannot be read."""
        return OSError(
            f'{self._where(window)}: unreadable, the file may be truncated or damaged; '
            f'replace or remove it ({error.__cause__ or error})'
        )


def check_raster(path: str) -> Grid:
    """Open a file and check all that can be checked without its pixels.

    Args:
        path: Raster file.

    Returns:
        Its grid.

    Raises:
        OSError: If it is not a readable raster.
        ValueError: If it has no usable georeference, no real numbers as pixels, or
            blocks too large to decode.
    """
    if not is_remote(path) and not os.path.isfile(path):
        kind = 'a pipe, socket or device' if os.path.exists(path) else 'a broken link'
        raise OSError(f'{path!r}: {kind}; replace, remove or exclude it')
    with _refused(path):
        return _check(path)


def band_indexes(
    path: str,
    bands: Sequence[int | str] | None = None,
    names: Sequence[str] | None = None,
) -> tuple[int, ...]:
    """Look up the 1-based numbers of bands in a file.

    Args:
        path: Raster file.
        bands: Names or 1-based numbers (defaults to all bands but alpha).
        names: Names of the bands but alpha, in the order of the file (defaults to the
            file's band descriptions).

    Returns:
        The numbers.

    Raises:
        ValueError: If the file lacks a band, or another number of bands than named.
    """
    src = open_raster(path)
    if src.count > MAX_BANDS and bands is None:
        raise ValueError(
            f'{path}: claims {src.count} bands; name those to read with bands'
        )
    with _refused(path):
        colors, described = src.colorinterp, src.descriptions
    images = [i for i in src.indexes if colors[i - 1] != ColorInterp.alpha]
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
    known |= {i: i for i in src.indexes}
    for band in bands:
        if band not in known:
            shown = [*list(known)[:20], *['...'] * (len(known) > 20)]
            raise ValueError(f'{path}: no band {band!r}; the file has {shown}')
    return tuple(known[band] for band in bands)


def open_raster(path: str, grid: Grid | None = None) -> DatasetReader | WarpedVRT:
    """Open a file once per process: handles do not survive a fork.

    Args:
        path: Raster file. With an ending of GeoTIFFs it is opened as such only: what a
            file's content names (a VRT's sources, say) is never followed unasked.
        grid: Grid to see it in, by nearest neighbour (defaults to its own).

    Returns:
        The open file.
    """
    return _open(path, grid, os.getpid())


@lru_cache(maxsize=128)
def _open(path: str, grid: Grid | None, pid: int) -> DatasetReader | WarpedVRT:
    """Open a file, in this process."""
    if grid is not None:
        src = open_raster(path)
        alpha = ColorInterp.alpha in src.colorinterp or all(
            MaskFlags.nodata in flags for flags in src.mask_flag_enums
        )
        return WarpedVRT(
            src,
            crs=grid.crs,
            transform=grid.transform,
            height=grid.height,
            width=grid.width,
            resampling=Resampling.nearest,
            add_alpha=not alpha,  # tells where the file ends
        )
    driver = 'GTiff' if path.lower().endswith(EXTENSIONS) else None
    with warnings.catch_warnings():
        # check_raster refuses such files, by name
        warnings.simplefilter('ignore', NotGeoreferencedWarning)
        return rasterio.open(path, driver=driver)


@contextmanager
def _refused(path: str) -> Iterator[None]:
    """Say which file GDAL cannot make sense of."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise OSError(f'{path!r}: its name is not UTF-8; rename it') from error
    except (RasterioError, CPLE_BaseError) as error:
        raise OSError(
            f'{path}: not a readable raster; replace, remove or exclude it ({error})'
        ) from error


def _check(path: str) -> Grid:
    """Check what GDAL tells of a file."""
    src = open_raster(path)
    if src.count == 0:
        names = f', but holds {src.subdatasets}: name one of them' * bool(
            src.subdatasets
        )
        raise ValueError(f'{path}: has no bands{names}')
    if src.crs is None or src.transform.is_identity:
        lacking = 'coordinate reference system' if src.crs is None else 'geotransform'
        raise ValueError(
            f'{path}: no {lacking}; georeference the file, for example with gdal_edit'
        )
    if not np.isfinite(src.transform).all() or src.transform.determinant == 0:
        raise ValueError(
            f'{path}: its geotransform {tuple(src.transform)[:6]} makes pixels without '
            'size or place; correct it, for example with gdal_edit'
        )
    if any(np.dtype(dtype).kind not in 'iuf' for dtype in src.dtypes):
        raise ValueError(
            f'{path}: pixels are {src.dtypes[0]}; integers or floats are needed'
        )
    rows, cols = _decoded_at_once(src)
    layers = src.count if src.profile.get('interleave') == 'pixel' else 1
    size = rows * cols * layers * np.dtype(src.dtypes[0]).itemsize
    if size > MAX_BLOCK_BYTES:
        raise ValueError(
            f'{path}: its blocks of {rows} x {cols} pixels take {size / 2**20:.0f} MiB '
            f'each, more than the {MAX_BLOCK_BYTES / 2**20:.0f} MiB that one patch may '
            'cost; convert it to a COG with gdal_translate -of COG'
        )
    if src.driver == 'GTiff' and not is_remote(path):
        _check_whole(src)
    return Grid(src.crs, src.transform, src.height, src.width)


def _decoded_at_once(src: DatasetReader) -> tuple[int, int]:
    """Rows and columns that have to be decoded for any pixel of them, at most."""
    rows, cols = src.block_shapes[0]
    if src.driver != 'GTiff' or rows > 1 or cols < src.width or not src.compression:
        return rows, cols
    # GDAL shows one strip of all rows as rows, yet decodes it from its start
    first, second = (
        src.get_tag_item(f'BLOCK_OFFSET_0_{row}', 'TIFF', bidx=1) for row in (0, 1)
    )
    return (src.height if first and not second else rows), cols


def _check_whole(src: DatasetReader) -> None:
    """Find out from a sample of its blocks whether a GeoTIFF has lost its end."""
    length = os.path.getsize(src.name)
    rows, cols = src.block_shapes[0]
    down, across = -(-src.height // rows), -(-src.width // cols)
    number = down * across
    # only the first band where bands are interleaved by pixel, else the outermost
    for band in {1, src.count}:
        for block in np.unique(np.linspace(0, number - 1, CHECKED_BLOCKS, dtype=int)):
            place = f'{block % across}_{block // across}'
            offset = src.get_tag_item(f'BLOCK_OFFSET_{place}', 'TIFF', bidx=band)
            size = src.get_tag_item(f'BLOCK_SIZE_{place}', 'TIFF', bidx=band)
            if offset and size and int(offset) + int(size) > length:
                raise OSError(
                    f'{src.name}: truncated, it has {length} bytes and its pixels '
                    f'reach to {int(offset) + int(size)}; replace or remove it'
                )


# Handles that outlive the modules they need complain when the interpreter ends.
atexit.register(_open.cache_clear)
