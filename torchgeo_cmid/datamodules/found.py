# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What was found in an archive, in a few lines for the start of a run."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from ..datasets import Scenes
from ..rasters.dates import UNBOUNDED
from ..rasters.scene import Scene

#: Entries of a list that are named before the rest is counted.
NAMED = 4


def describe(scenes: Scenes, area: float) -> list[str]:
    """Say what scenes there are.

    Args:
        scenes: The scenes.
        area: Area of the ground that they show, what overlaps once, in m^2.

    Returns:
        Three lines: scenes and bands; systems, resolutions and area; dates.
    """
    skipped = f', {len(scenes.skipped)} skipped' if scenes.skipped else ''
    cache = '' if scenes.cache is None else f', cache {scenes.cache.folder}'
    files = len({each.path for scene in scenes.scenes for each in scene.sources})
    bands = ', '.join(map(str, scenes.bands))
    return [
        f'found: {len(scenes.scenes)} scenes in {files} files{skipped}, '
        f'{len(scenes.bands)} bands ({bands}){cache}',
        f'ground: {area / 1e6:,.4g} km2, CRS {_count(map(_system, scenes.scenes))}, '
        f'pixels of {_count(map(_resolution, scenes.scenes))}',
        f'dates: {_dates(scenes.scenes)}',
    ]


def _count(names: Iterable[str]) -> str:
    """Name the most frequent, with their numbers if there are several."""
    counts = Counter(names).most_common()
    if len(counts) == 1:
        return counts[0][0]
    listed = ', '.join(f'{name} ({number})' for name, number in counts[:NAMED])
    rest = len(counts) - NAMED
    return f'{listed} and {rest} more' if rest > 0 else listed


def _system(scene: Scene) -> str:
    """Name a coordinate reference system."""
    code = scene.crs.to_epsg()
    if code is not None:
        return f'EPSG:{code}'
    return f"'{scene.crs.to_wkt().partition(chr(34))[2].partition(chr(34))[0]}'"


def _resolution(scene: Scene) -> str:
    """Say how large a pixel is, in the unit of its system."""
    a, b, _, d, e, _ = scene.transform[:6]
    sides = [f'{each:.4g}' for each in (np.hypot(a, d), np.hypot(b, e))]
    unit = 'degrees' if scene.crs.is_geographic else 'units'
    unit = scene.crs.linear_units if scene.crs.is_projected else unit
    return f'{" x ".join(dict.fromkeys(sides))} {unit}'


def _dates(scenes: Iterable[Scene]) -> str:
    """Say on how many days scenes were taken, from when to when."""
    starts = [scene.interval.left for scene in scenes]
    days = sorted({start.date() for start in starts if start != UNBOUNDED.left})
    unknown = starts.count(UNBOUNDED.left)
    if not days:
        return 'not known, a filename_regex with a group date takes them from names'
    span = f'{days[0]}' if len(days) == 1 else f'{days[0]} to {days[-1]}'
    rest = f', {unknown} scenes without' if unknown else ''
    return f'{len(days)} from {span}{rest}' if len(days) > 1 else f'{span}{rest}'
