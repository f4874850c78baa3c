# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands of one raster file, read in a grid, with where they are no fill."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.io import DatasetReader
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from .errors import GDAL_ERRORS
from .files import container, is_remote
from .opening import check_files, check_side_files, environment
from .raster import Grid, is_paletted, open_raster, refused
from .stamp import Stamp

#: Data types that float32 holds without loss.
EXACT = {'uint8', 'int8', 'uint16', 'int16', 'float32'}


class Pixels(NamedTuple):
    """A window of a file as it was decoded."""

    #: Values of the bands (C, H, W).
    data: NDArray[np.generic]
    #: Where the file declares no band to be fill (H, W).
    valid: NDArray[np.bool_]
    #: The file holds floating-point numbers.
    floating: bool


@dataclass(frozen=True)
class Source:
    """A raster file, the bands wanted of it, and the grid to read it in."""

    #: File that holds the pixels.
    path: str
    #: Bands to read, 1-based.
    indexes: tuple[int, ...]
    #: Fill value in addition to those that the file declares. NaN is one unless a
    #: number is given.
    nodata: float | None = None
    #: Grid to read in (None: its own). Each pixel takes the nearest one of the file, so
    #: that fill never mixes with data.
    grid: Grid | None = None
    #: Data type of each band.
    dtypes: tuple[str, ...] = ()
    #: Pixels may be fill. In another grid they always may: it shows where a file ends.
    may_have_fill: bool = True
    #: The file holds numbers of colours in a table, and bands are red, green and blue.
    paletted: bool = False
    #: GDAL's drivers that may open it, besides those of the short list.
    drivers: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        path: str,
        indexes: tuple[int, ...],
        nodata: float | None = None,
        grid: Grid | None = None,
        drivers: tuple[str, ...] = (),
    ) -> Self:
        """Open a file and note what it says of its bands.

        Args:
            path: File that holds the pixels.
            indexes: Bands to read, 1-based.
            nodata: Fill value in addition to those that the file declares.
            grid: Grid to read in (defaults to its own).
            drivers: GDAL's drivers that may open it, besides those of the short list.

        Returns:
            The file and its bands.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If a band holds no real numbers, or numbers of colours beside
                other bands.
        """
        with refused(path):
            src = open_raster(path, drivers=drivers)
            flags, dtypes, colors = src.mask_flag_enums, src.dtypes, src.colorinterp
            paletted = is_paletted(src)
        if paletted:
            table = _table(src)
            transparent = bool((table[:, 3] == 0).any())
            kinds = ('uint8',) * len(indexes)
            declared = transparent or flags[0] != [MaskFlags.all_valid]
        else:
            for i in indexes:
                if _kind(dtypes[i - 1]).kind not in 'iuf':
                    raise ValueError(
                        f'{path}: pixels of band {i} are {dtypes[i - 1]}; integers or '
                        'floats are needed'
                    )
                if colors[i - 1] == ColorInterp.palette:
                    raise ValueError(
                        f'{path}: band {i} holds numbers of colours in a table, and '
                        'there are other bands; write the colours as bands with '
                        f"gdal_translate -b {i} -expand rgb '{path}' out.tif"
                    )
            kinds = tuple(dtypes[i - 1] for i in indexes)
            declared = any(flags[i - 1] != [MaskFlags.all_valid] for i in indexes)
        floating = any(_kind(dtype).kind == 'f' for dtype in kinds)
        return cls(
            path,
            indexes,
            nodata,
            grid,
            dtypes=kinds,
            may_have_fill=declared
            or nodata is not None
            or grid is not None
            or floating,
            paletted=paletted,
            drivers=drivers,
        )

    @property
    def stored(self) -> np.dtype[np.generic]:
        """The data type that holds the numbers of all bands."""
        return np.result_type(*self.dtypes)

    def read(
        self,
        window: Window,
        image: NDArray[np.float32] | None = None,
        decoded: Pixels | None = None,
    ) -> NDArray[np.bool_]:
        """Read a window.

        Args:
            window: The window.
            image: Where to put the pixels (C, H, W).
            decoded: The window as a cache holds it (defaults to decoding it).

        Returns:
            Where no band is fill (H, W).

        Raises:
            OSError: If the file cannot be read there.
            ValueError: If valid pixels are NaN or infinite.
        """
        data, valid, floating = decoded or self.load(window, image)
        nan_is_fill = self.nodata is None or np.isnan(self.nodata)
        if not nan_is_fill:
            valid &= ~(data == self.nodata).any(axis=0)

        if floating:
            largest = np.finfo(np.float32).max  # what is larger has no float32
            usable = (np.abs(data) <= largest).all(axis=0)
            if nan_is_fill and not usable.all():
                valid &= ~np.isnan(data).any(axis=0)
            if not usable[valid].all():
                raise ValueError(
                    f'{self._where(window)}: pixels that are NaN or infinite and not '
                    'declared as no data; repair the file'
                    + f', or leave nodata={self.nodata} out: then NaN is no data'
                    * (not nan_is_fill)
                )
        if image is not None and data is not image:
            with np.errstate(over='ignore'):  # fill that is too large becomes infinite
                image[:] = data
        return valid

    def load(
        self,
        window: Window,
        image: NDArray[np.float32] | None = None,
        stamp: Stamp | None = None,
    ) -> Pixels:
        """Decode a window: what the file says, before it is checked.

        Args:
            window: The window.
            image: Where to put the pixels (C, H, W), if float32 holds them exactly.
            stamp: What the file was when it was last looked at.

        Returns:
            The pixels.

        Raises:
            OSError: If the file cannot be read there.
        """
        try:
            src = open_raster(self.path, self.grid, stamp, self.drivers)
            with self._reading(src):
                if self.paletted:
                    return self._expand(src, window)
                dtypes = {src.dtypes[i - 1] for i in self.indexes}
                # straight to float32 where that is exact: it saves a copy of all bands
                exact = image is not None and dtypes <= EXACT
                out = image if exact else None
                if len(dtypes) == 1:
                    data = src.read(self.indexes, window=window, out=out)
                else:  # band by band: GDAL reads one type at a time
                    shape = round(window.height), round(window.width)
                    data = (
                        np.empty((len(self.indexes), *shape), np.result_type(*dtypes))
                        if out is None
                        else out
                    )
                    for band, index in zip(data, self.indexes, strict=True):
                        src.read(index, window=window, out=band)
        except GDAL_ERRORS as error:
            raise self._unreadable(window, error) from error
        floating = any(_kind(dtype).kind == 'f' for dtype in dtypes)
        return Pixels(data, self._declared(src, window), floating)

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
        src = open_raster(self.path, self.grid, drivers=self.drivers)
        kinds = [] if self.paletted else [src.dtypes[i - 1] for i in self.indexes]
        if (
            self.paletted
            or self.nodata is not None
            or any(_kind(dtype).kind == 'f' for dtype in kinds)
        ):
            return self.read(window)
        return self._declared(src, window)

    def _reading(
        self, src: DatasetReader | WarpedVRT
    ) -> AbstractContextManager[object]:
        """Look at what GDAL opens only when it reads: the sources of a VRT."""
        if src.driver != 'VRT':
            return nullcontext()
        check_files(self.path, self.drivers)
        entered: AbstractContextManager[object] = environment()
        return entered

    def _expand(self, src: DatasetReader | WarpedVRT, window: Window) -> Pixels:
        """Look numbers of colours up in their table."""
        numbers = src.read(1, window=window)
        table = _table(src)
        valid = self._declared(src, window)
        unknown = valid & ((numbers < 0) | (numbers >= len(table)))
        if unknown.any():
            raise ValueError(
                f'{self._where(window)}: there are pixels of colour '
                f'{numbers[unknown].max()}, but its table has only {len(table)}; '
                'repair the file'
            )
        colors = table[np.where(valid, numbers, 0)]  # (H, W, 4)
        valid &= colors[..., 3] > 0
        channels = [index - 1 for index in self.indexes]
        data = np.ascontiguousarray(colors[..., channels].transpose(2, 0, 1))
        return Pixels(data, valid, False)

    def _declared(
        self, src: DatasetReader | WarpedVRT, window: Window
    ) -> NDArray[np.bool_]:
        """Tell where the file declares no band to be fill."""
        shape = (round(window.height), round(window.width))
        valid = np.ones(shape, dtype=np.bool_)
        flags = src.mask_flag_enums
        bands = (1,) if self.paletted else self.indexes
        if any(flags[i - 1] != [MaskFlags.all_valid] for i in bands):
            shared = MaskFlags.per_dataset in flags[bands[0] - 1]
            indexes = bands[:1] if shared else bands
            try:
                with self._reading(src):
                    valid = src.read_masks(indexes, window=window).all(axis=0)
            except GDAL_ERRORS as error:
                raise self._unreadable(window, error, 'its mask is ') from error
        return valid

    def _where(self, window: Window) -> str:
        """Name the place of a window."""
        (top, bottom), (left, right) = window.toranges()
        return f'{self.path}, rows {top} to {bottom}, columns {left} to {right}'

    def _unreadable(self, window: Window, error: Exception, what: str = '') -> OSError:
        """Say what cannot be read."""
        if what and not is_remote(container(self.path)):
            side = check_side_files(container(self.path))
            what = what if side is None else f'its mask {side} is '
        return OSError(
            f'{self._where(window)}: {what}unreadable, the file may be truncated '
            f'or damaged; replace or remove it ({error.__cause__ or error})'
        )


def _kind(dtype: str) -> np.dtype[np.generic]:
    """NumPy's name of a data type of GDAL's; complex integers are none of its own."""
    return np.dtype('complex64' if dtype.startswith('complex_int') else dtype)


def _table(src: DatasetReader | WarpedVRT) -> NDArray[np.uint8]:
    """Look up the colours of a file, (n, 4): red, green, blue, alpha."""
    colors = src.colormap(1)
    table = np.zeros((max(colors) + 1, 4), dtype=np.uint8)
    table[list(colors)] = list(colors.values())
    return table
