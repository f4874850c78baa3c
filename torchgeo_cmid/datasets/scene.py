# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""One scene: a raster file, the bands wanted of it, and reads in its own grid."""

import atexit
import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError  # what rasterio.warp raises
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.warp import transform_geom
from rasterio.windows import Window
from shapely.affinity import affine_transform
from shapely.geometry import mapping, shape
from torchgeo.datasets.utils import Path

#: Endings of the files that a folder is searched for, in lower case.
EXTENSIONS = ('.tif', '.tiff')

#: Longitude and latitude: the one CRS in which all footprints can be compared.
LONLAT = CRS.from_epsg(4326)

#: EASE-Grid 2.0: the CRS in which areas are compared.
EQUAL_AREA = CRS.from_epsg(6933).to_wkt()

#: Points along each edge of a footprint, so that it keeps its shape in any CRS.
EDGE_POINTS = 64


def find_files(paths: Path | Iterable[Path]) -> list[str]:
    """List the raster files that *paths* names.

    Folders are searched recursively for ``.tif`` and ``.tiff`` in any case; hidden
    files are ignored. A file named outright may have any ending.

    Args:
        paths: A folder, a file or a glob, or several of them.

    Returns:
        The files, sorted and each of them once.

    Raises:
        FileNotFoundError: If a path does not exist, a folder holds no GeoTIFF, or a
            glob matches nothing.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]

    files: set[str] = set()
    for path in [os.path.expanduser(os.fspath(path)) for path in paths]:
        if os.path.isdir(path):
            found = [
                os.path.join(path, name)
                for name in glob.iglob('**/*', root_dir=path, recursive=True)
                if name.lower().endswith(EXTENSIONS)
            ]
            hint = f'the folder holds no {" or ".join(EXTENSIONS)} file'
        elif glob.has_magic(path) and not os.path.exists(path):
            found = glob.glob(path, recursive=True)
            hint = 'the glob matches no file'
        else:
            found = [path] if os.path.exists(path) else []
            hint = 'no such file or folder'
        found = [file for file in found if os.path.isfile(file)]
        if not found:
            raise FileNotFoundError(
                f'paths={path!r}: {hint}. Give a folder, a file or a glob of GeoTIFFs.'
            )
        files.update(found)

    if not files:
        raise FileNotFoundError('paths is empty. Give a folder, a file or a glob.')
    return sorted(files)


@dataclass(frozen=True)
class Scene:
    """A raster in its own grid: what is needed to place and to read a window of it."""

    #: File that holds the pixels.
    path: str
    #: Bands to read, 1-based.
    indexes: tuple[int, ...]
    #: Rows.
    height: int
    #: Columns.
    width: int
    #: Maps (column, row) to (x, y) in *crs*.
    transform: Affine
    #: Native coordinate reference system.
    crs: CRS
    #: Fill value in addition to those that the file declares (NaN is allowed).
    nodata: float | None = None

    @property
    def footprint(self) -> shapely.Geometry:
        """Outline of the grid in longitude and latitude, cut at the antimeridian.

        Raises:
            ValueError: If the grid does not lie on the Earth.
        """
        pixels = shapely.box(0, 0, self.width, self.height)
        pixels = shapely.segmentize(pixels, max(self.width, self.height) / EDGE_POINTS)
        outline = affine_transform(pixels, self.transform.to_shapely())
        try:
            lonlat = transform_geom(self.crs, LONLAT, mapping(outline))
        except CPLE_BaseError as error:
            raise ValueError(
                f'{self.path}: its outline has no longitude and latitude; correct its '
                f'coordinate reference system or geotransform ({error})'
            ) from error
        return shape(lonlat)

    def read(
        self, row: int, col: int, size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read a square window.

        Args:
            row: First row of the window.
            col: First column of the window.
            size: Height and width of the window in pixels.

        Returns:
            The pixels (C, size, size), and where they are valid (size, size): no band
            is fill by tag, mask, alpha or *nodata*.

        Raises:
            OSError: If the file cannot be read there.
            ValueError: If valid pixels are NaN or infinite.
        """
        window = Window(col, row, size, size)
        rows, cols = f'rows {row} to {row + size}', f'columns {col} to {col + size}'
        where = f'{self.path}, {rows}, {cols}'
        try:
            src = _open(self.path, os.getpid())
            data = src.read(self.indexes, window=window)
            valid = src.read_masks(self.indexes, window=window).all(axis=0)
        except RasterioError as error:
            raise OSError(
                f'{where}: unreadable, the file may be truncated or damaged; replace '
                f'or remove it ({error.__cause__ or error})'
            ) from error

        if self.nodata is not None:
            fill = np.isnan(data) if np.isnan(self.nodata) else data == self.nodata
            valid &= ~fill.any(axis=0)

        with np.errstate(over='ignore'):  # what is too large becomes infinite: below
            image = data.astype(np.float32)
        if not np.isfinite(image).all(axis=0, where=valid).all():
            raise ValueError(
                f'{where}: pixels that are NaN or infinite and not declared as no '
                f'data; for NaN set nodata to .nan, or repair the file'
            )
        return image, valid


def open_scene(
    path: str, bands: Sequence[int | str] | None = None, nodata: float | None = None
) -> Scene:
    """Make a scene of a file, and check all that can be checked without its pixels.

    Args:
        path: Raster file.
        bands: Names as in the file's band descriptions, or 1-based numbers (defaults
            to all bands but alpha).
        nodata: Fill value in addition to those that the file declares.

    Returns:
        The scene.

    Raises:
        OSError: If the file is not a readable raster.
        ValueError: If the file has no CRS or geotransform, no real numbers as pixels,
            or lacks a band.
    """
    try:
        src = _open(path, os.getpid())
    except RasterioError as error:
        raise OSError(
            f'{path}: not a readable raster; replace, remove or exclude it ({error})'
        ) from error

    if src.crs is None or src.transform.is_identity:
        lacking = 'coordinate reference system' if src.crs is None else 'geotransform'
        raise ValueError(
            f'{path}: no {lacking}; georeference the file, for example with gdal_edit'
        )
    if any(np.dtype(dtype).kind not in 'iuf' for dtype in src.dtypes):
        raise ValueError(
            f'{path}: pixels are {src.dtypes[0]}; integers or floats are needed'
        )
    return Scene(
        path=path,
        indexes=_band_indexes(src, bands),
        height=src.height,
        width=src.width,
        transform=src.transform,
        crs=src.crs,
        nodata=nodata,
    )


def _band_indexes(
    src: DatasetReader, bands: Sequence[int | str] | None
) -> tuple[int, ...]:
    """Look up the 1-based numbers of *bands* in a file."""
    if bands is None:
        return tuple(
            index
            for index, color in zip(src.indexes, src.colorinterp, strict=True)
            if color != ColorInterp.alpha
        )
    known = {name: i for i, name in enumerate(src.descriptions, 1) if name}
    known |= {i: i for i in src.indexes}
    for band in bands:
        if band not in known:
            raise ValueError(
                f'{src.name}: no band {band!r}; the file has {list(known)}'
            )
    return tuple(known[band] for band in bands)


@lru_cache(maxsize=128)
def _open(path: str, pid: int) -> DatasetReader:
    """Open a file once per process: handles do not survive a fork."""
    return rasterio.open(path)


# Handles that outlive the modules they need complain when the interpreter ends.
atexit.register(_open.cache_clear)
