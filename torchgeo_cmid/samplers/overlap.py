# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which ground scenes have in common, and how much of it a patch covers."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS
from tqdm import tqdm

from ..datasets import Scene, Scenes
from ..rasters.scene import LONLAT, transformer

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def around(
    scene: Scene, rows: Floats, cols: Floats, sizes: int | Integers
) -> tuple[NDArray[np.bool_], Integers, Integers]:
    """Place patches around their centres, and tell which lie in a scene.

    Args:
        scene: The scene.
        rows: Rows of the centres (n,).
        cols: Columns of the centres (n,).
        sizes: Heights and widths of the patches in pixels, one or (n,).

    Returns:
        Whether each lies in the scene, its first row and its first column (n,).
    """
    row = np.rint(rows - np.asarray(sizes) / 2).astype(np.int64)
    col = np.rint(cols - np.asarray(sizes) / 2).astype(np.int64)
    fits = (row >= 0) & (row <= scene.height - sizes)
    fits &= (col >= 0) & (col <= scene.width - sizes)
    return fits, row, col


class Overlap:
    """Finds patches of other scenes with the same centre, and their ground area.

    Scenes of one grid, of many dates perhaps, are at one *place*: most is looked at
    once for all of them.
    """

    def __init__(self, dataset: Scenes, size: int, alone: bool = False) -> None:
        """Initialize a new Overlap instance.

        Args:
            dataset: The scenes.
            size: Height and width of a patch in pixels.
            alone: Give each scene a place of its own, whatever its grid.
        """
        self.scenes = dataset.scenes
        self.size = size
        #: Outlines of the scenes in longitude and latitude.
        self.footprints = dataset.index.geometry.to_numpy()
        #: Times of the scenes.
        self.intervals = dataset.index.index
        #: Number of the place of each scene, and numbers of the scenes of each place.
        self.place, self.members = self._find_places(alone)
        #: The first scene of each place, as if it had no fill.
        self.bare = [
            replace(self.scenes[members[0]], coverage=None) for members in self.members
        ]
        outlines = self.footprints[[members[0] for members in self.members]]
        # by their bounds: whether ground is shared shows when patches are looked at
        left, right = shapely.STRtree(outlines).query(outlines)
        order = np.lexsort((right, left))
        starts = np.searchsorted(left[order], np.arange(1, len(outlines)))
        #: For each place those, itself included, that may share ground with it.
        self.near: list[Integers] = np.split(right[order], starts)
        by_itself = [
            len(near) == len(members) == 1
            for near, members in zip(self.near, self.members, strict=True)
        ]
        #: Scenes that may share ground with another.
        self.overlaps = ~np.array(by_itself, dtype=np.bool_)[self.place]
        transforms = [tuple(scene.transform)[:6] for scene in self.scenes]
        self._transforms: Floats = np.array(transforms, dtype=np.float64)
        systems = {crs: i for i, crs in enumerate({s.crs: None for s in self.bare})}
        self._systems = np.array([systems[scene.crs] for scene in self.scenes])

    def _find_places(self, alone: bool) -> tuple[Integers, list[Integers]]:
        """Number the places of scenes, and list the scenes of each."""
        known: dict[object, int] = {}
        place = np.zeros(len(self.scenes), dtype=np.int64)
        for i, scene in enumerate(self.scenes):
            region = None if scene.region is None else scene.region.wkb
            grid = scene.crs, scene.transform, scene.height, scene.width, region
            place[i] = known.setdefault((grid, i if alone else None), len(known))
        order = np.argsort(place, kind='stable')
        ends = np.searchsorted(place[order], np.arange(1, len(known)))
        return place, np.split(order, ends)

    def shares(self, test: Callable[[Integers, Integers], NDArray[np.bool_]]) -> bool:
        """Tell whether two scenes that share ground pass a test.

        Args:
            test: Tells of scenes (n,) and others (n,) which pairs pass.

        Returns:
            True if any pair does.
        """
        for place, near in enumerate(self.near):
            for other in near:
                one, two = self.members[place], self.members[other]
                left, right = np.repeat(one, len(two)), np.tile(two, len(one))
                if test(left, right).any() and shapely.intersects(
                    self.footprints[one[0]], self.footprints[two[0]]
                ):
                    return True
        return False

    def elsewhere(
        self, scenes: Integers, rows: Integers, cols: Integers
    ) -> Iterator[tuple[int, Integers, Floats, Floats]]:
        """Find the other scenes that show the centres of patches.

        Args:
            scenes: Numbers of the scenes (n,).
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).

        Yields:
            Number of a scene, indices of the patches whose centres it shows (m,), and
            the rows and the columns of these centres in it (m,).
        """
        for place, here, y, x in self.places_near(scenes, rows, cols):
            for other in self.members[place]:
                apart = scenes[here] != other
                yield int(other), here[apart], y[apart], x[apart]

    def places_near(
        self, scenes: Integers, rows: Integers, cols: Integers, slow: bool = False
    ) -> Iterator[tuple[int, Integers, Floats, Floats]]:
        """Find the places, their own included, that show the centres of patches.

        Args:
            scenes: Numbers of the scenes (n,).
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).
            slow: Show how far it is, if it takes seconds.

        Yields:
            Number of a place, indices of the patches whose centres it shows (m,), and
            the rows and the columns of these centres in it (m,).
        """
        known = np.flatnonzero(self.overlaps[scenes])
        if not len(known):
            return
        y, x = rows[known] + self.size / 2, cols[known] + self.size / 2
        a, b, c, d, e, f = self._transforms[scenes[known]].T
        x, y = a * x + b * y + c, d * x + e * y + f
        systems, places = self._systems[scenes[known]], self.place[scenes[known]]
        lonlat = np.full((2, len(known)), np.nan)
        for system in np.unique(systems):
            here = systems == system
            crs = self.scenes[scenes[known[here][0]]].crs
            lonlat[:, here] = self._turn(crs, x[here], y[here])
        others = np.unique(np.concatenate([self.near[p] for p in np.unique(places)]))
        is_near = np.zeros(len(self.members), dtype=np.bool_)
        for other in tqdm(
            others,
            'Shared ground',
            unit='place',
            delay=3,
            leave=False,
            disable=not slow,
        ):
            is_near[self.near[other]] = True
            here = np.flatnonzero(is_near[places])
            is_near[self.near[other]] = False
            scene, first = self.bare[other], self.members[other][0]
            if (systems[here] == self._systems[first]).all():
                right, down = x[here], y[here]
            else:
                outline = self.footprints[first]
                shapely.prepare(outline)
                here = here[shapely.intersects_xy(outline, lonlat[:, here].T)]
                right, down = transformer(LONLAT, scene.crs).transform(*lonlat[:, here])
            right = scene.wrap(right)
            a, b, c, d, e, f = (~scene.transform)[:6]
            row, col = d * right + e * down + f, a * right + b * down + c
            inside = (row >= 0) & (row <= scene.height)
            inside &= (col >= 0) & (col <= scene.width)
            here, row, col = here[inside], row[inside], col[inside]
            yield int(other), known[here], row, col

    def equal_size(
        self, other: int, areas: Floats, rows: Floats, cols: Floats
    ) -> Integers:
        """Find how many pixels a patch of the same ground area has in another scene.

        Args:
            other: Number of the other scene.
            areas: Ground areas of the patches (n,): see :meth:`area`.
            rows: Rows of their centres in the other scene (n,).
            cols: Columns of their centres in the other scene (n,).

        Returns:
            Heights and widths in pixels of the other scene (n,), 1 at least.
        """
        half = self.size / 2
        ratio = areas / self.area_in(other, rows - half, cols - half)
        return np.maximum(np.rint(self.size * np.sqrt(ratio)), 1).astype(np.int64)

    def area(self, scenes: Integers, rows: Integers, cols: Integers) -> Floats:
        """Find the ground area of patches, as a share of the Earth's.

        Args:
            scenes: Numbers of the scenes (n,).
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).

        Returns:
            Their areas (n,).
        """
        area = np.zeros(len(scenes))
        for scene in np.unique(scenes):
            here = scenes == scene
            area[here] = self.area_in(scene, rows[here], cols[here])
        return area

    def area_in(
        self, scene: int, rows: Integers | Floats, cols: Integers | Floats
    ) -> Floats:
        """Find the ground area of patches of one scene, as a share of the Earth's.

        Args:
            scene: Number of the scene.
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).

        Returns:
            Their areas (n,).
        """
        corners = [(0, 0), (0, self.size), (self.size, self.size), (self.size, 0)]
        places = [self._lonlat(scene, rows + row, cols + col) for row, col in corners]
        lonlat = np.radians(np.stack(places, axis=1))  # (n, 4, 2)
        lon, lat = lonlat[..., 0], lonlat[..., 1]
        ring = np.cos(lat)
        corner = np.stack([ring * np.cos(lon), ring * np.sin(lon), np.sin(lat)], axis=2)
        # half the product of the diagonals, on a sphere of area 4 pi
        diagonals = corner[:, 2] - corner[:, 0], corner[:, 3] - corner[:, 1]
        area: Floats = np.linalg.norm(np.cross(*diagonals), axis=1) / (8 * np.pi)
        return area

    def corners(
        self,
        scene: int,
        row: float | Floats,
        col: float | Floats,
        height: float | Floats,
        width: float | Floats,
    ) -> Floats:
        """Find the corners of rectangles.

        Args:
            scene: Number of the scene.
            row: First rows (...,).
            col: First columns (...,).
            height: Heights in pixels (...,).
            width: Widths in pixels (...,).

        Returns:
            Longitudes and latitudes of the corners (..., 4, 2).
        """
        rows = np.stack([row, row, row + height, row + height], axis=-1)
        cols = np.stack([col, col + width, col + width, col], axis=-1)
        return self._lonlat(scene, rows, cols)

    def _lonlat(
        self, scene: int, rows: Integers | Floats, cols: Integers | Floats
    ) -> Floats:
        """Longitude and latitude (n, 2) of places in a scene."""
        a, b, c, d, e, f = self.scenes[scene].transform[:6]
        x, y = a * cols + b * rows + c, d * cols + e * rows + f
        return np.stack(self._turn(self.scenes[scene].crs, x, y), axis=-1)

    @staticmethod
    def _turn(crs: CRS, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Longitudes, from -180 on, and latitudes of coordinates."""
        lon, lat = transformer(crs, LONLAT).transform(x, y)
        with np.errstate(invalid='ignore'):  # off the Earth
            return (lon + 180) % 360 - 180, lat
