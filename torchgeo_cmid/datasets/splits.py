# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A split of scenes into training and validation ground that never overlap.

Scenes whose footprints overlap or touch, whatever their CRS, form a *cluster*. A
cluster in which the wanted share of the area has room for a patch is cut by a straight
line: the share on one side is for validation, the rest for training. Clusters that are
too small for that go to validation whole, in seeded order, until their share is
reached. If that leaves no validation patch, more than the share is set aside: a strip
just wide enough for one of the largest cluster that can be cut, or else the smallest
cluster.

Whether a patch lies on one side is decided by its outline, transformed to the grid of
the largest scene of its cluster, in which the line is drawn. Between the sides lies a
guard of one pixel of that grid, so that rounding cannot make two patches touch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import shapely
from geopandas import GeoSeries
from numpy.typing import NDArray

from ..rasters.scene import EQUAL_AREA, Scene, transformer
from .scenes import Scenes

#: Footprints closer than this (degrees, about 100 m) count as touching: more than
#: what the straight pieces of an outline in longitude and latitude can be off by.
TOUCHING = 1e-3

#: What widens west, south, east and north.
BOTH_WAYS = np.array([-1, -1, 1, 1])

#: Points along each edge of a patch when its outline is transformed.
EDGE_POINTS = 8

#: Patches along each axis that are looked at, at most, to find one that may be used.
CANDIDATES = 64

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Cut:
    """A straight line in the grid of a scene: training before it, validation beyond."""

    #: Scene in whose grid the line is drawn.
    reference: Scene
    #: The line is a column (0) or a row (1).
    axis: int = 0
    #: Validation lies at the far end (1) or at the near end (-1) of the axis.
    sign: int = 1
    #: Where the line is, in pixels times *sign*: infinite where nothing is cut.
    position: float = np.inf

    def project(self, scene: Scene, cols: Floats, rows: Floats) -> Floats:
        """Express places in a scene as coordinates across the line.

        Args:
            scene: Scene of the same cluster.
            cols: Columns in *scene*, of any shape.
            rows: Rows in *scene*, of the same shape.

        Returns:
            Coordinates in pixels of the reference, growing towards validation.
        """
        x, y = _affine(scene.transform, cols, rows)
        if scene.crs != self.reference.crs:
            x, y = transformer(scene.crs, self.reference.crs).transform(x, y)
        x = self.reference.wrap(x)
        return self.sign * _affine(~self.reference.transform, x, y)[self.axis]

    def extent(
        self, scene: Scene, rows: Integers, cols: Integers, size: int | Integers
    ) -> tuple[Floats, Floats]:
        """Find how far patches reach towards the two sides.

        Args:
            scene: Scene of the same cluster.
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).
            size: Height and width of the patches in pixels, one or (n,).

        Returns:
            Lowest and highest coordinate of each patch's outline (n,).
        """
        if scene.crs == self.reference.crs and not scene.crs.is_geographic:
            # edges stay straight: the corners are outermost
            both = ~self.reference.transform @ scene.transform
            a, b, c = both[3 * self.axis : 3 * self.axis + 3]
            a, b, c = self.sign * a, self.sign * b, self.sign * c
            start = a * cols + b * rows + c
            low = start + np.minimum(a * size, 0) + np.minimum(b * size, 0)
            high = start + np.maximum(a * size, 0) + np.maximum(b * size, 0)
            return low, high
        edge = np.linspace(0, size, EDGE_POINTS + 1, axis=-1)
        zero, far = np.zeros_like(edge), np.zeros_like(edge) + edge[..., -1:]
        across = np.concatenate([edge, edge, zero, far], axis=-1)
        down = np.concatenate([zero, far, edge, edge], axis=-1)
        places = self.project(scene, cols[:, None] + across, rows[:, None] + down)
        return places.min(axis=1), places.max(axis=1)


@dataclass
class AreaSplit:
    """Which patches are for training and which for validation."""

    scenes: Sequence[Scene]
    #: Height and width in pixels of the patches that either side has room for.
    size: int
    #: The cut of each scene's cluster.
    cuts: list[Cut] = field(default_factory=list)

    def train(
        self, scene: int, rows: Integers, cols: Integers, size: int | Integers
    ) -> NDArray[np.bool_]:
        """Tell which patches are for training.

        Args:
            scene: Number of the scene.
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).
            size: Height and width of the patches in pixels, one or (n,).

        Returns:
            True where a patch lies wholly on training ground (n,).
        """
        cut = self.cuts[scene]
        if np.isinf(cut.position):
            return np.full(rows.shape, cut.position > 0)
        _, high = cut.extent(self.scenes[scene], rows, cols, size)
        return high <= cut.position - 1

    def val(
        self, scene: int, rows: Integers, cols: Integers, size: int | Integers
    ) -> NDArray[np.bool_]:
        """Tell which patches are for validation.

        Args:
            scene: Number of the scene.
            rows: First rows of the patches (n,).
            cols: First columns of the patches (n,).
            size: Height and width of the patches in pixels, one or (n,).

        Returns:
            True where a patch lies wholly on validation ground (n,).
        """
        cut = self.cuts[scene]
        if np.isinf(cut.position):
            return np.full(rows.shape, cut.position < 0)
        low, _ = cut.extent(self.scenes[scene], rows, cols, size)
        return low >= cut.position


def candidates(scene: Scene, size: int) -> tuple[Integers, Integers]:
    """List patches of a scene of which one is allowed if any is.

    Those in the corners are the outermost: enough where all of the scene may be used.
    Where a region or fill leaves some out, they are the usable ones of a grid.

    Args:
        scene: The scene.
        size: Height and width of a patch in pixels.

    Returns:
        First rows and first columns, none if no patch fits.
    """
    last_row, last_col = scene.height - size, scene.width - size
    if min(last_row, last_col) < 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if scene.region is None and scene.coverage is None:
        return np.array([0, 0, last_row, last_row]), np.array([0, last_col] * 2)
    starts = []
    for last in (last_row, last_col):
        step = max(1, size // 4, last // CANDIDATES)
        starts.append(np.append(np.arange(0, last, step), last))
    rows, cols = (axis.ravel() for axis in np.meshgrid(*starts, indexing='ij'))
    keep = scene.eligible(rows, cols, size)
    return rows[keep], cols[keep]


def split_by_area(
    dataset: Scenes, size: int, val_split: float, seed: int = 0
) -> AreaSplit:
    """Set a share of the ground aside for validation.

    The result depends on nothing but the arguments.

    Args:
        dataset: Scenes to split.
        size: Height and width of a patch in pixels.
        val_split: Share of the area for validation, at least 0 and less than 1.
        seed: Chooses which ends and which small clusters are set aside.

    Returns:
        The split.

    Raises:
        ValueError: If *val_split* is out of range, or leaves no room for a training
            and a validation patch.
    """
    if not 0 <= val_split < 1:
        raise ValueError(f'val_split={val_split} must be at least 0 and less than 1')
    scenes = dataset.scenes
    split = AreaSplit(scenes, size, [Cut(scene) for scene in scenes])
    if val_split == 0:
        return split

    rng = np.random.default_rng(seed)
    footprints = dataset.index.geometry.to_crs(EQUAL_AREA)
    clusters = _clusters(dataset.index.geometry)
    small: list[tuple[Integers, float]] = []
    for members in (clusters[i] for i in rng.permutation(len(clusters))):
        inside = [scenes[i] for i in members]
        cut = _cut_by_share(inside, val_split, sign=int(rng.choice([-1, 1])))
        if not _assign(split, members, cut):
            small.append((members, footprints.iloc[members].union_all().area))

    wanted = val_split * sum(area for _, area in small)
    for members, area in small:
        if area <= wanted:
            wanted -= area
            _set_aside(split, members)
    if _any(split, 'val') and _any(split, 'train'):
        return split

    # The share is less than any patch: the narrowest strip, or the smallest cluster.
    split.cuts = [Cut(scene) for scene in scenes]
    small.sort(key=lambda cluster: cluster[1])
    for members, _ in reversed(small):
        inside = [scenes[i] for i in members]
        if _assign(split, members, _cut_for_one_patch(inside, size)):
            return split
    for members, _ in small:
        if _any(split, 'val', _set_aside(split, members)) and _any(split, 'train'):
            return split
    raise ValueError(
        f'val_split={val_split} leaves no room for a training and a validation patch '
        f'of {size} pixels: choose a smaller patch, add scenes, or set it to 0'
    )


def _affine(transform: Sequence[float], x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Apply an affine transform to arrays."""
    a, b, c, d, e, f = transform[:6]
    return a * x + b * y + c, d * x + e * y + f


def _clusters(footprints: GeoSeries) -> list[Integers]:
    """Group footprints that overlap or touch, directly or through others."""
    # of one outline, that of a time series for example, one stands for all
    shapes, same = np.unique(shapely.to_wkb(footprints.array), return_inverse=True)
    outlines = shapely.from_wkb(shapes)
    shapely.prepare(outlines)
    boxes = shapely.box(*(shapely.bounds(outlines) + TOUCHING * BOTH_WAYS).T)
    tree = shapely.STRtree(boxes)
    labels = np.full(len(outlines), -1)
    for start in range(len(outlines)):
        if labels[start] >= 0:
            continue
        labels[start], waiting = start, [start]
        while waiting:  # each is compared only with those that belong to none yet
            outline = waiting.pop()
            others = tree.query(boxes[outline])
            others = others[labels[others] < 0]
            near = shapely.dwithin(outlines[outline], outlines[others], TOUCHING)
            labels[others[near]] = start
            waiting.extend(others[near])
    return _by_label(labels[same])


def _by_label(labels: Integers) -> list[Integers]:
    """Group numbers by their labels, in the order of the first of each."""
    _, first = np.unique(labels, return_index=True)
    return [np.flatnonzero(labels == labels[i]) for i in np.sort(first)]


def _assign(split: AreaSplit, members: Integers, cut: Cut) -> bool:
    """Cut a cluster if both sides then hold a patch, and tell whether they do."""
    trial = replace(split, cuts=[cut] * len(split.scenes))
    if not (_any(trial, 'val', members) and _any(trial, 'train', members)):
        return False
    for i in members:
        split.cuts[i] = cut
    return True


def _set_aside(split: AreaSplit, members: Integers) -> Integers:
    """Give a whole cluster to validation."""
    for i in members:
        split.cuts[i] = Cut(split.scenes[i], position=-np.inf)
    return members


def _any(split: AreaSplit, side: str, members: Integers | None = None) -> bool:
    """Tell whether a side holds a patch: if any does, then a candidate does."""
    allowed = getattr(split, side)
    scenes = range(len(split.scenes)) if members is None else members
    return any(
        allowed(i, *candidates(split.scenes[i], split.size), split.size).any()
        for i in scenes
    )


def _cut_by_share(scenes: Sequence[Scene], share: float, sign: int) -> Cut:
    """Cut across the longer axis of a cluster so that a share lies beyond the line."""
    reference = max(scenes, key=lambda scene: scene.height * scene.width)
    grids = {  # those of one grid once
        (s.crs, s.transform, s.height, s.width, s.region and s.region.wkb): s
        for s in scenes
    }
    outline = shapely.union_all([_outline(s, reference) for s in grids.values()])
    left, top, right, bottom = outline.bounds
    axis = 0 if right - left >= bottom - top else 1

    low, high = (left, right) if axis == 0 else (top, bottom)
    before = 1 - share if sign > 0 else share
    start, stop = low, high
    for _ in range(50):  # bisection
        middle = (start + stop) / 2
        box = [left, top, right, bottom]
        box[axis + 2] = middle
        if shapely.clip_by_rect(outline, *box).area < before * outline.area:
            start = middle
        else:
            stop = middle
    return Cut(reference, axis, sign, sign * stop)


def _cut_for_one_patch(scenes: Sequence[Scene], size: int) -> Cut:
    """Cut off the narrowest strip of a cluster that holds a patch."""
    line = _cut_by_share(scenes, 0.5, sign=1)
    low = [line.extent(scene, *candidates(scene, size), size)[0] for scene in scenes]
    return replace(line, position=float(np.concatenate(low).max(initial=-np.inf)))


def _outline(scene: Scene, reference: Scene) -> shapely.Geometry:
    """Outline a scene in the grid of another one of its cluster."""
    axes = [Cut(reference, axis) for axis in (0, 1)]
    return shapely.make_valid(
        shapely.transform(
            scene.outline,
            lambda cols, rows: [axis.project(scene, cols, rows) for axis in axes],
            interleaved=False,
        )
    )
