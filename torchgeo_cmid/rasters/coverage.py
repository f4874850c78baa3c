# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where the fill pixels of a scene are, summed so that patches are looked up."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from .source import Source

#: Cells along the longer side of a scene, at most: 2 MiB of memory.
MAX_CELLS = 512

#: Pixels read at a time.
CHUNK = 2**22

#: Pixels of a scene that is searched for fill, at most: hours of decoding.
MAX_PIXELS = 2**36


def divide(window: Window) -> tuple[int, tuple[int, int]]:
    """Divide a scene into cells.

    Args:
        window: The part of its files that the scene is.

    Returns:
        Height and width of a cell in pixels, and the number of rows and of columns.
    """
    height, width = round(window.height), round(window.width)
    cell = -(-max(height, width) // MAX_CELLS)
    return cell, (-(-height // cell), -(-width // cell))


@dataclass(frozen=True)
class Coverage:
    """Counts of fill pixels in square cells, summed from the top left corner."""

    #: Height and width of a cell in pixels.
    cell: int
    #: Fill pixels above and left of the corner of each cell (rows + 1, columns + 1).
    sums: NDArray[np.int64]

    @classmethod
    def measure(cls, sources: Sequence[Source], window: Window) -> 'Coverage':
        """Read where the pixels of a scene are fill.

        Args:
            sources: The files of the scene.
            window: The part of them that the scene is.

        Returns:
            The counts.

        Raises:
            OSError: If a file cannot be read.
            ValueError: If the scene is too large to be searched.
        """
        height, width = round(window.height), round(window.width)
        if height * width > MAX_PIXELS:
            raise ValueError(
                f'{sources[0].path}: {height} x {width} pixels are too many to look '
                'for fill; set min_valid to 0, or cut the file into tiles'
            )
        cell, shape = divide(window)
        counts = np.zeros(shape, dtype=np.int64)
        rows = cell * max(1, CHUNK // (cell * width))
        for start in range(0, height, rows):
            part = Window(
                window.col_off, window.row_off + start, width, min(rows, height - start)
            )
            valid = np.all([source.valid(part) for source in sources], axis=0)
            edges = (np.arange(0, length, cell) for length in valid.shape)
            fill = np.add.reduceat(~valid, next(edges), axis=0, dtype=np.int64)
            fill = np.add.reduceat(fill, next(edges), axis=1)
            counts[start // cell : start // cell + len(fill)] = fill
        return cls.of_counts(cell, counts)

    @classmethod
    def of_counts(cls, cell: int, counts: NDArray[np.integer]) -> 'Coverage':
        """Sum up counts.

        Args:
            cell: Height and width of a cell in pixels.
            counts: Fill pixels of each cell (rows, columns).

        Returns:
            The sums.
        """
        sums = np.zeros((counts.shape[0] + 1, counts.shape[1] + 1), dtype=np.int64)
        sums[1:, 1:] = counts.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
        return cls(cell, sums)

    def fits(self, window: Window) -> bool:
        """Tell whether it has the cells of a scene.

        Args:
            window: The part of its files that the scene is.

        Returns:
            True if it may be that scene's.
        """
        rows, cols = self.sums.shape
        return (self.cell, (rows - 1, cols - 1)) == divide(window)

    def pack(self) -> bytes:
        """Write it in as few bytes as it takes: most cells hold no fill, or only that.

        Returns:
            The size of a cell, the number of rows and columns, and the counts.
        """
        counts = np.diff(np.diff(self.sums, axis=0), axis=1)
        head = np.array([self.cell, *counts.shape], dtype='<i8')
        return head.tobytes() + zlib.compress(counts.astype('<i4').tobytes(), level=1)

    @classmethod
    def unpack(cls, content: bytes) -> 'Coverage':
        """Read what :meth:`pack` wrote.

        Args:
            content: What it wrote.

        Returns:
            The coverage.
        """
        cell, *shape = np.frombuffer(content, '<i8', count=3).tolist()
        counts = np.frombuffer(zlib.decompress(content[24:]), '<i4')
        return cls.of_counts(cell, counts.reshape(shape))

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to other processes packed: 2 MiB each add up in an archive."""
        return Coverage.unpack, (self.pack(),)

    def valid(
        self,
        rows: NDArray[np.int64],
        cols: NDArray[np.int64],
        size: int | NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Look up the share of valid pixels of patches.

        Args:
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).
            size: Height and width of the patches in pixels, one or (n,).

        Returns:
            The share of valid pixels (n,), never more than it is: fill of cells that a
            patch touches counts as its own. Exact where a cell is one pixel, in scenes
            of no more than 512 pixels a side.
        """
        return 1 - self.fill(rows, cols, size, size) / size**2

    def fill(
        self,
        rows: NDArray[np.int64],
        cols: NDArray[np.int64],
        heights: int | NDArray[np.int64],
        widths: int | NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Count the fill pixels of rectangles.

        Args:
            rows: First rows of the rectangles (n,).
            cols: First columns of the rectangles (n,).
            heights: Their heights in pixels, one or (n,).
            widths: Their widths in pixels, one or (n,).

        Returns:
            The number of fill pixels of the cells they touch (n,), never less than
            their own.
        """
        top, left = np.maximum(rows, 0) // self.cell, np.maximum(cols, 0) // self.cell
        down, across = np.array(self.sums.shape) - 1
        bottom = np.minimum(-(-(rows + heights) // self.cell), down)
        right = np.minimum(-(-(cols + widths) // self.cell), across)
        fill: NDArray[np.int64] = (
            self.sums[bottom, right]
            - self.sums[top, right]
            - self.sums[bottom, left]
            + self.sums[top, left]
        )
        return fill
