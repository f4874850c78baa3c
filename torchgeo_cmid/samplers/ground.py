# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How likely a patch must be kept for every place on the ground to be as likely."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import shapely
import shapely.plotting
from matplotlib import pyplot as plt
from matplotlib.collections import PolyCollection
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ..datasets import Patch, Scenes
from ..datasets.splits import candidates
from .overlap import Floats, Integers, Overlap, around

#: Tells for patches of one scene (its number, first rows, first columns, height and
#: width) which of them may be drawn.
Allowed = Callable[[int, Integers, Integers, int | Integers], NDArray[np.bool_]]

#: Relative difference in ground area between the patches of a scene to be evened out.
UNEVEN = 0.01

#: Places along each axis of a scene where the ground area of a patch is looked up.
PROBES = 9

#: Parts along each axis of a scene that shares ground with others, and how many are
#: looked at at a time.
PARTS = 4
ROUND = 2**13

#: Cells that a plot divides the ground into, about and at most.
SHOWN_CELLS = 2**14


class Parts(NamedTuple):
    """Parts of scenes in which patches start, (m,) each."""

    #: Number of the scene.
    scene: Integers
    #: First row and column in which a patch starts.
    row: Integers
    col: Integers
    #: Rows and columns in which patches start.
    rows: Integers
    cols: Integers
    #: Number of scenes, this one included, that show the centre of every patch.
    shown: Integers


class Ground:
    """Evens out what patches of scenes have in common and how large they are.

    Starts of patches that are drawn evenly over a scene's pixels favour ground that
    several scenes show, and in a grid of degrees, or of Mercator's, ground near the
    poles. A patch whose centre could as well be that of a patch of k - 1 other scenes
    counts 1 / k, times its ground area over the largest of its scene.

    In an archive of many dates nearly all patches would be drawn in vain. So scenes are
    divided into parts, and what is known of a whole part, that k' scenes show it, goes
    into how likely it is drawn; only k' / k is left to chance.

    For example, take two scenes of 100 x 100 pixels of 10 m, the second 500 m further
    east, and patches of 20 pixels. In either scene a patch can start in 81 columns, so
    the centres lie in columns 10 to 90 of the first, and what are columns 60 to 140 of
    the first for the second. Both show columns 60 to 90: a patch that starts in column
    50 or later of the first has its centre there, k is 2 and it is kept one time in 2.
    Of 81 + 81 columns 50 + 50 count 1, and 31 + 31 count 1/2: that makes 131, just as
    many as there are columns from 10 to 140, each of them as likely as any other.

    >>> ground = Ground(dataset, size=20, allowed=everywhere)
    >>> scenes, cols = np.array([0, 0, 1, 1]), np.array([49, 50, 30, 31])
    >>> ground.chance(scenes, np.zeros_like(cols), cols)
    array([1. , 0.5, 0.5, 1. ])

    :meth:`plot` shows where that is. Drawn evenly, 162 patches would give 131. Now the
    starts of the first scene are divided at columns 20, 40 and 60. The last of these
    parts, from column 60 on, is known to be shown by both scenes: it is drawn half as
    often, and then always kept, while of the one before, columns 40 to 59, those from
    50 on are left to chance.
    """

    def __init__(self, dataset: Scenes, size: int, allowed: Allowed) -> None:
        """Initialize a new Ground instance.

        Args:
            dataset: Scenes that are drawn from.
            size: Height and width of a patch in pixels.
            allowed: Tells which patches may be drawn.
        """
        self.size = size
        self.allowed = allowed
        #: What depends on the ground alone of what is allowed: the same for scenes of
        #: one grid. None if that is not known.
        self.of_ground: Allowed | None = getattr(allowed, 'of_ground', None)
        # what a user allows may be other patches of each scene
        self.overlap = Overlap(dataset, size, alone=self.of_ground is None)
        self.scenes = dataset.scenes

        #: Scenes of which any patch may be drawn.
        self.drawn = self._find_drawn()
        areas = [self._probe(int(members[0])) for members in self.overlap.members]
        largest = np.array([area.max(initial=0) for area in areas])
        #: Ground area of the largest patch of each scene, 0 where none fits.
        self.largest: Floats = largest[self.overlap.place]
        smallest = np.array([area.min(initial=np.inf) for area in areas])
        #: Scenes whose patches differ in ground area.
        self.uneven = (smallest < (1 - UNEVEN) * largest)[self.overlap.place]
        #: For each place the number of scenes without fill that are drawn from, and
        #: the others.
        self._plain = np.array([s.coverage is None for s in self.scenes]) & self.drawn
        self._kinds = [
            (
                int(self._plain[members].sum()),
                members[self.drawn[members] & ~self._plain[members]],
            )
            for members in self.overlap.members
        ]

    def _find_drawn(self) -> NDArray[np.bool_]:
        """Tell of which scenes any patch may be drawn."""
        plain: dict[int, bool] = {}
        drawn = np.zeros(len(self.scenes), dtype=np.bool_)
        for i, scene in enumerate(self.scenes):
            place = int(self.overlap.place[i])
            if scene.coverage is not None or place not in plain:
                found = self.allowed(i, *candidates(scene, self.size), self.size).any()
                drawn[i] = found
                if scene.coverage is None:
                    plain[place] = bool(found)
            else:
                drawn[i] = plain[place]
        return drawn

    def divide(self) -> Parts:
        """Divide scenes into parts that the same other scenes show.

        Returns:
            The parts: a scene that shares no ground has one, and a scene of which no
            patch may be drawn none.

        Raises:
            ValueError: If no patch of any scene may be drawn.
        """
        table, ranges, end = [], {}, 0
        for place, members in enumerate(self.overlap.members):
            if not self.drawn[members].any():
                continue
            number = PARTS if self.overlap.overlaps[members[0]] else 1
            shape = self.overlap.bare[place].height, self.overlap.bare[place].width
            edges = [
                np.unique(np.linspace(0, side - self.size + 1, number + 1, dtype=int))
                for side in shape
            ]
            first = np.stack(np.meshgrid(edges[0][:-1], edges[1][:-1])).reshape(2, -1)
            after = np.stack(np.meshgrid(edges[0][1:], edges[1][1:])).reshape(2, -1)
            same = np.full(first.shape[1], members[0])
            table.append(np.column_stack([same, *first, *(after - first)]))
            ranges[place] = slice(end, end + first.shape[1])
            end += first.shape[1]
        parts = np.concatenate(table)
        shown, plain, covered = self._count_shown(parts)
        found = []
        for scene in np.flatnonzero(self.drawn):
            part = ranges[int(self.overlap.place[scene])]
            itself = plain if self._plain[scene] else covered[int(scene)]
            k = shown[part] - itself[part] + 1
            found.append(np.column_stack([np.full(len(k), scene), parts[part, 1:], k]))
        return Parts._make(np.concatenate(found).T)

    def _count_shown(
        self, parts: Integers
    ) -> tuple[Integers, Integers, dict[int, Integers]]:
        """Count the scenes that show the centres of all patches of parts.

        Looked at are nine patches of each, the outermost included, and whether anything
        between them keeps patches from being drawn.

        Args:
            parts: The first scene of a place, first row, first column, rows and columns
                of parts, (m, 5).

        Returns:
            Their number (m,), whether a scene of the same place is one of them if it
            has no fill (m,), and if it has, for each such scene (m,).
        """
        shown, plain = np.zeros((2, len(parts)), dtype=np.int64)
        covered = {
            int(scene): np.zeros(len(parts), dtype=np.int64)
            for scene in np.flatnonzero(self.drawn & ~self._plain)
        }
        for start in range(0, len(parts), ROUND):
            scene, row, col, rows, cols = parts[start : start + ROUND].T
            steps = np.arange(3)[:, None] / 2
            y = row + (steps * (rows - 1)).astype(np.int64)  # (3, m)
            x = col + (steps * (cols - 1)).astype(np.int64)
            probes = np.repeat(y, 3, axis=0).ravel(), np.tile(x, (3, 1)).ravel()
            places = self.overlap.places_near(np.tile(scene, 9), *probes, slow=True)
            for other, here, y, x in places:
                number, others = self._kinds[other]
                if not number and not len(others):
                    continue
                shows = np.zeros(9 * len(scene), dtype=np.bool_)
                shows[here] = self._fits(other, y, x)[0]
                part = np.flatnonzero(shows.reshape(9, -1).all(axis=0))
                corners = np.full((2, 9 * len(scene)), np.nan)
                corners[:, here] = np.stack([y, x]) - self.size / 2
                corners = corners.reshape(2, 9, -1)[..., part]
                top, left = np.floor(corners.min(axis=1)).astype(np.int64)
                ends = np.ceil(corners.max(axis=1)).astype(np.int64) + self.size
                place = top, left, ends[0] - top, ends[1] - left, self.size
                own = self.overlap.place[scene[part]] == other
                part += start
                if number:
                    whole = self.overlap.bare[other].eligible_throughout(*place)
                    shown[part] += number * whole
                    plain[part[own]] = whole[own]
                for member in others:
                    whole = self.scenes[member].eligible_throughout(*place)
                    shown[part] += whole
                    covered[int(member)][part[own]] = whole[own]
        return shown, plain, covered

    def chance(self, scenes: Integers, rows: Integers, cols: Integers) -> Floats:
        """Find how much patches that were drawn count.

        Args:
            scenes: Numbers of the scenes (n,).
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).

        Returns:
            Their shares of a place on the ground, at most 1 (n,).
        """
        chance = np.ones(len(scenes))
        here = self.uneven[scenes]
        area = self.overlap.area(scenes[here], rows[here], cols[here])
        chance[here] = np.minimum(area / self.largest[scenes[here]], 1)
        return chance / self._multiplicity(scenes, rows, cols)

    def plot(self, patches: Iterable[Patch] = ()) -> Figure:
        """Show where the centres of patches may lie, over the footprints.

        Args:
            patches: Patches to show, some of a sampler for example.

        Returns:
            The figure, in longitude and latitude. Ground is coloured by the number of
            scenes of which a patch could be drawn with the same centre; what shows a
            footprint alone is ground on which no centre lies: near edges, outside of
            the region of interest, fill, or not allowed.
        """
        fig, ax = plt.subplots(layout='constrained')
        ax.set_title(f'{type(self).__name__}: centres of patches of {self.size} pixels')
        ax.set_xlabel('longitude (degrees)')
        ax.set_ylabel('latitude (degrees)')
        for footprint in self.overlap.footprints:
            shapely.plotting.plot_polygon(
                footprint, ax, add_points=False, facecolor='0.9', edgecolor='0.4'
            )

        cells, numbers = self._cells()
        highest = int(numbers.max(initial=1))
        ground = PolyCollection(
            list(cells),
            array=numbers,
            cmap=plt.get_cmap('viridis', highest),
            norm=BoundaryNorm(np.arange(highest + 1) + 0.5, highest),
            edgecolor='face',
            label='centres',
        )
        ax.add_collection(ground)
        bar = fig.colorbar(
            ground,
            ax=ax,
            label='scenes that show it',
            shrink=0.7,
            ticks=np.arange(1, highest + 1, -(-highest // 10)),
        )
        bar.minorticks_off()
        outlines = [
            self.overlap.corners(
                patch.scene, patch.row, patch.col, patch.size, patch.size
            )
            for patch in patches
        ]
        drawn = PolyCollection(
            outlines, facecolor='none', edgecolor='tab:red', label='patches'
        )
        ax.add_collection(drawn)
        footprint = Rectangle((0, 0), 1, 1, facecolor='0.9', edgecolor='0.4')
        fig.legend(
            [footprint, *[drawn] * bool(outlines)],
            ['footprints', *['patches'] * bool(outlines)],
            loc='outside lower center',
            ncols=2,
        )
        ax.ticklabel_format(useOffset=False)
        ax.locator_params(nbins=5)
        south, north = ax.get_ylim()
        # a degree of longitude is that much shorter than one of latitude
        ax.set_aspect(1 / max(np.cos(np.radians((south + north) / 2)), 0.05))
        return fig

    def _cells(self) -> tuple[Floats, Floats]:
        """Divide the ground where centres lie into cells.

        Returns:
            Their corners in longitude and latitude (n, 4, 2), and the number of scenes
            of which a patch could be drawn with that centre (n,).
        """
        number = int(np.clip((SHOWN_CELLS / len(self.scenes)) ** 0.5, 4, 40))
        corners, shown = [np.zeros((0, 4, 2))], [np.zeros(0)]
        for scene in np.flatnonzero(self.drawn):
            shape = self.scenes[scene].height, self.scenes[scene].width
            # starts of patches, and the edges half-way between them
            starts, edges = [], []
            for side in shape:
                start = np.unique(np.linspace(0, side - self.size, number, dtype=int))
                middle = (start[1:] + start[:-1]) / 2
                starts.append(start)
                edges.append(np.concatenate([[-0.5], middle, [start[-1] + 0.5]]))
            rows, cols = (axis.ravel() for axis in np.meshgrid(*starts, indexing='ij'))
            tops, lefts, heights, widths = (
                axis.ravel()
                for ends in (
                    [edge[:-1] + self.size / 2 for edge in edges],
                    [np.diff(edge) for edge in edges],
                )
                for axis in np.meshgrid(*ends, indexing='ij')
            )
            keep = self.allowed(int(scene), rows, cols, self.size)
            same = np.full(int(keep.sum()), scene)
            shown.append(self._multiplicity(same, rows[keep], cols[keep]))
            place = tops[keep], lefts[keep], heights[keep], widths[keep]
            corners.append(self.overlap.corners(int(scene), *place))
        cells, numbers = np.concatenate(corners), np.concatenate(shown)
        # those across the antimeridian would be drawn around the Earth
        whole = np.ptp(cells[..., 0], axis=1) < 180
        return cells[whole], numbers[whole]

    def _fits(
        self, place: int, rows: Floats, cols: Floats
    ) -> tuple[NDArray[np.bool_], Integers, Integers]:
        """Place patches around centres: which may be drawn, but for their fill."""
        scene = self.overlap.bare[place]
        fits, row, col = around(scene, rows, cols, self.size)
        first = int(self.overlap.members[place][0])
        ground = self.allowed if self.of_ground is None else self.of_ground
        usable = ground(first, row[fits], col[fits], self.size)
        fits[fits] = usable & scene.eligible(row[fits], col[fits], self.size)
        return fits, row, col

    def _multiplicity(self, scenes: Integers, rows: Integers, cols: Integers) -> Floats:
        """Count the scenes of which a patch could be drawn with the same centre."""
        number = np.ones(len(scenes))
        for place, here, y, x in self.overlap.places_near(scenes, rows, cols):
            plain, covered = self._kinds[place]
            fits, row, col = self._fits(place, y, x)
            here, row, col = here[fits], row[fits], col[fits]
            own = scenes[here]
            itself = self._plain[own] & (self.overlap.place[own] == place)
            number[here] += plain - itself
            for member in covered:
                usable = self.scenes[member].eligible(row, col, self.size)
                number[here] += usable & (own != member)
        return number

    def _probe(self, scene: int) -> Floats:
        """Look up the ground area of patches all over a scene."""
        last_row = self.scenes[scene].height - self.size
        last_col = self.scenes[scene].width - self.size
        if min(last_row, last_col) < 0:
            return np.zeros(0)
        rows, cols = np.meshgrid(
            np.linspace(0, last_row, PROBES), np.linspace(0, last_col, PROBES)
        )
        return self.overlap.area_in(scene, rows.ravel(), cols.ravel())
