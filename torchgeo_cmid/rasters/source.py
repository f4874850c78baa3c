# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands of one raster file, read in a grid, with where they are no fill."""

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what rasterio.warp raises
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from .raster import Grid, open_raster, refused
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
    #: Fill value in addition to those that the file declares (NaN is allowed).
    nodata: float | None = None
    #: Grid to read in (None: its own). Each pixel takes the nearest one of the file, so
    #: that fill never mixes with data.
    grid: Grid | None = None
    #: Data type of each band in the file.
    dtypes: tuple[str, ...] = ()
    #: Pixels may be fill. In another grid they always may: it shows where a file ends.
    may_have_fill: bool = True

    @classmethod
    def open(
        cls,
        path: str,
        indexes: tuple[int, ...],
        nodata: float | None = None,
        grid: Grid | None = None,
    ) -> Self:
        """Open a file and note what it says of its bands.

        Args:
            path: File that holds the pixels.
            indexes: Bands to read, 1-based.
            nodata: Fill value in addition to those that the file declares.
            grid: Grid to read in (defaults to its own).

        Returns:
            The file and its bands.

        Raises:
            OSError: If the file cannot be read.
        """
        with refused(path):
            src = open_raster(path)
            flags, dtypes = src.mask_flag_enums, src.dtypes
        declared = any(flags[i - 1] != [MaskFlags.all_valid] for i in indexes)
        return cls(
            path,
            indexes,
            nodata,
            grid,
            dtypes=tuple(dtypes[i - 1] for i in indexes),
            may_have_fill=declared or nodata is not None or grid is not None,
        )

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
        if self.nodata is not None:
            fill = np.isnan(data) if np.isnan(self.nodata) else data == self.nodata
            valid &= ~fill.any(axis=0)

        if floating:
            largest = np.finfo(np.float32).max  # what is larger has no float32
            usable = (np.abs(data) <= largest).all(axis=0)
            if not usable[valid].all():
                raise ValueError(
                    f'{self._where(window)}: pixels that are NaN or infinite and not '
                    'declared as no data; for NaN set nodata to .nan, or repair the '
                    'file'
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
            src = open_raster(self.path, self.grid, stamp)
            # straight to float32 where that is exact: it saves a copy of all bands
            exact = image is not None and set(src.dtypes) <= EXACT
            data = src.read(self.indexes, window=window, out=image if exact else None)
        except (RasterioError, CPLE_BaseError) as error:
            raise self._unreadable(window, error) from error
        return Pixels(data, self._declared(src, window), src.dtypes[0][0] == 'f')

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
        return self._declared(src, window)

    def _declared(self, src: DatasetReader, window: Window) -> NDArray[np.bool_]:
        """Tell where the file declares no band to be fill."""
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
