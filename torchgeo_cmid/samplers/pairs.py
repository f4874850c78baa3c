# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The same ground on another date: from addresses of patches to those of pairs."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..datasets import Patch, PatchPair
from ..rasters.dates import UNBOUNDED
from .ground import Allowed
from .overlap import Floats, Integers, Overlap, around

#: Patches for which another date is looked up at a time.
ROUND = 512

#: How many times as large the pixels of one date may be as those of the other: beyond,
#: one patch would be a blur, or the other one's pixels too many to read.
RATIO = 8


def find_other_dates(
    dates: int, overlap: Overlap, allowed: Allowed
) -> 'OtherDates | None':
    """Prepare to pair patches if pairs are wanted.

    Args:
        dates: 1, or 2 for pairs.
        overlap: What scenes have in common.
        allowed: Tells which patches may be drawn.

    Returns:
        What makes the pairs, None for 1.

    Raises:
        ValueError: If *dates* is neither, or there can be no pair.
    """
    if dates not in (1, 2):
        raise ValueError(f'dates={dates} must be 1, or 2 for pairs of dates')
    return OtherDates(overlap, allowed) if dates == 2 else None


class OtherDates:
    """Pairs patches with ones of the same ground on another date.

    The other patch has the same centre and covers the same area of ground, so it has
    fewer pixels where they are coarser, down to an eighth a side. Of all scenes of
    other days in which it may be drawn, one is chosen at random; where there is none,
    the same patch serves twice.
    """

    def __init__(self, overlap: Overlap, allowed: Allowed) -> None:
        """Initialize a new OtherDates instance.

        Args:
            overlap: What scenes have in common.
            allowed: Tells which patches may be drawn.

        Raises:
            ValueError: If no scene shares ground with one of another time.
        """
        self.overlap, self.allowed = overlap, allowed
        times = overlap.intervals
        self.start, self.stop = (  # numbers of days, in their order
            (end.year * 366 + end.day_of_year).to_numpy()
            for end in (times.left, times.right)
        )
        if not overlap.shares(self._apart):
            known, unbounded = len(times.unique()), UNBOUNDED in times
            raise ValueError(
                f'dates=2, but no two of {len(times)} scenes show the same ground on '
                f'different days (times known: {known - unbounded}): let '
                'filename_regex have a group date, or set dates to 1'
            )

    def pair(self, patches: Integers, draws: Floats) -> Iterator[PatchPair]:
        """Pair patches.

        Args:
            patches: Scene, first row and first column of patches (n, 3).
            draws: Random numbers in 0..1, one for each patch (n,).

        Yields:
            The pairs.
        """
        size = self.overlap.size
        for start in range(0, len(patches), ROUND):
            chunk = patches[start : start + ROUND]
            others = self._choose(chunk, draws[start : start + ROUND])
            for (scene, row, col), other in zip(chunk, others, strict=True):
                first = Patch(int(scene), int(row), int(col), size)
                yield PatchPair(first, Patch(*map(int, other)))

    def _choose(self, patches: Integers, draws: Floats) -> Integers:
        """Choose the other patch of each, (n, 4); the same where there is none."""
        size = self.overlap.size
        chosen = np.column_stack([patches, np.full(len(patches), size)])
        areas = self.overlap.area(*patches.T)
        found = [np.zeros((0, 5), dtype=np.int64)]
        for other, places, y, x in self.overlap.elsewhere(*patches.T):
            apart = self._apart(patches[places, 0], np.full(len(places), other))
            places, y, x = places[apart], y[apart], x[apart]
            sizes = self.overlap.equal_size(other, areas[places], y, x)
            near = (sizes <= RATIO * size) & (size <= RATIO * sizes)
            places, y, x, sizes = places[near], y[near], x[near], sizes[near]
            usable, rows, cols = around(self.overlap.scenes[other], y, x, sizes)
            inside = rows[usable], cols[usable], sizes[usable]
            usable[usable] = self.allowed(other, *inside)
            scenes = np.full(len(places), other)
            table = np.column_stack([places, scenes, rows, cols, sizes])
            found.append(table[usable])
        table = np.concatenate(found)
        table = table[np.lexsort(table[:, 1::-1].T)]  # by patch, then by scene
        number = np.bincount(table[:, 0], minlength=len(patches))
        some = np.flatnonzero(number)
        first = np.cumsum(number) - number
        chosen[some] = table[(first + (draws * number).astype(np.int64))[some], 1:]
        return chosen

    def _apart(self, scenes: Integers, others: Integers) -> NDArray[np.bool_]:
        """Tell which scenes were taken at times that have no day in common."""
        before: NDArray[np.bool_] = self.stop[scenes] < self.start[others]
        after: NDArray[np.bool_] = self.stop[others] < self.start[scenes]
        return before | after
