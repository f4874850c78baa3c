# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The scenes of some sensors: found, opened, and left out where they are of no use."""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import shapely
from tqdm import tqdm

from .cache import BlockCache
from .files import find_files
from .grouping import belong_together, group_by_band, guess_bands
from .opening import check_drivers
from .records import Found, Records
from .scene import Scene, open_scene
from .sensor import Sensor

#: Reasons that the warning about skipped scenes spells out.
SHOWN = 3


@dataclass
class Catalog:
    """Scenes that share a number of bands."""

    #: Where patches may lie, in longitude and latitude (None: everywhere).
    region: shapely.Geometry | None = None
    #: Least share of valid pixels of a patch.
    min_valid: float = 0.0
    #: Leave out the scenes that cannot be used.
    skip_bad_files: bool = False
    #: Where what is found out about files is kept.
    cache: BlockCache | None = None
    scenes: list[Scene] = field(default_factory=list)
    #: Outlines of the scenes in longitude and latitude.
    footprints: list[shapely.Geometry] = field(default_factory=list)
    #: Bands of a sample, by the name or number they have in the first scene.
    bands: tuple[int | str, ...] = ()
    #: Files that stand for scenes that cannot be used, and why.
    skipped: dict[str, str] = field(default_factory=dict)
    #: Number of scenes outside the region.
    outside: int = 0
    #: Scenes of files whose names differ in a band, by which they were put together.
    guessed: list[dict[str, str]] = field(default_factory=list)

    def add(self, sensor: Sensor) -> None:
        """Add the scenes of a sensor.

        Args:
            sensor: The sensor.

        Raises:
            FileNotFoundError: If it has no files.
            OSError: If a file is not a readable raster.
            ValueError: If a file cannot be used.
        """
        if sensor.drivers is not None:
            check_drivers(sensor.drivers)
        found: Sequence[str | dict[str, str]] = find_files(sensor.paths)
        numbered = any(isinstance(band, int) for band in sensor.bands or ())
        guessed = sensor.filename_regex is None
        if sensor.filename_regex is not None:
            found = group_by_band(list(map(str, found)), sensor.filename_regex)
        elif sensor.all_bands is None and not numbered:
            found = guess_bands(list(map(str, found)))
        bands = sensor.bands or sensor.all_bands
        records = None
        if self.cache is not None:
            records = Records(self.cache, sensor, self.region)
        try:
            for files in tqdm(found, 'Scenes', unit='scene', delay=3, leave=False):
                path = files if isinstance(files, str) else next(iter(files.values()))
                try:
                    if isinstance(files, str):
                        self._add_scene(files, sensor, bands, records)
                        continue
                    wanted = bands or _natural(files)
                    if guessed and not self._is_scene(files, sensor, wanted, records):
                        for file in files.values():
                            self._add_scene(file, sensor, bands, records)
                        continue
                    bands = wanted
                    self._add_scene(files, sensor, bands, records)
                    if guessed:
                        self.guessed.append(files)
                except (OSError, ValueError) as error:
                    if not self.skip_bad_files:
                        if self.guessed and isinstance(files, str):
                            raise ValueError(
                                f'{path} stands alone beside scenes of one file a '
                                f'band: some of {list(bands or ())} of its scene are '
                                'missing, or it is something else. Leave it out of '
                                'paths, pass skip_bad_files=True, give filename_regex, '
                                f'or bands=[1] to take each file for a scene ({error})'
                            ) from error
                        raise
                    self.skipped[path] = str(error)
        finally:  # where one file stops the run, the next has not to look at all again
            if records is not None:
                records.save()

    def finish(self, name: object) -> None:
        """Say what was skipped, and refuse to go on with nothing.

        Args:
            name: What the scenes were looked for in.

        Raises:
            ValueError: If no scene is left.
        """
        summary = '; '.join(list(self.skipped.values())[:SHOWN])
        if len(self.skipped) > SHOWN:
            summary += f'; and {len(self.skipped) - SHOWN} more, see Scenes.skipped'
        summary = f'{len(self.skipped)} bad scenes are skipped: {summary}'
        if not self.scenes:
            outside = f'{self.outside} scenes lie outside roi'
            raise ValueError(
                f'no scene is left of {name!r}: '
                + '; '.join(
                    [outside] * bool(self.outside) + [summary] * bool(self.skipped)
                )
            )
        if self.skipped:
            warnings.warn(summary, stacklevel=3)
        if self.guessed:
            first = self.guessed[0]
            warnings.warn(
                f'{len(self.guessed)} scenes are put together from files of one band '
                f'each, by the names of bands in theirs: {_natural(first)} of '
                f'{next(iter(first.values()))}, for example; give filename_regex for '
                'another way, or bands=[1] to take each file for a scene',
                stacklevel=3,
            )

    def _add_scene(
        self,
        files: str | dict[str, str],
        sensor: Sensor,
        bands: Sequence[int | str] | None,
        records: Records | None,
    ) -> None:
        """Add one scene if it meets the region."""
        found = None if records is None else records.find(files, bands)
        if found is None:
            scene = open_scene(files, sensor, bands)
            self._check_bands(scene, bands)
            found = self._place(scene)
            if records is not None:
                records.keep(files, bands, found)
        else:
            self._check_bands(found.scene, bands)
        scene, footprint = found
        if footprint is None:
            self.outside += 1
            return
        if self.min_valid and scene.may_have_fill:
            coverage = None if records is None else records.find_coverage(scene)
            measured = scene.demand_valid(self.min_valid, coverage)
            if coverage is None and records is not None:
                assert measured.coverage is not None
                records.keep_coverage(scene, measured.coverage)
            scene = measured
        self.footprints.append(footprint)
        self.scenes.append(scene)
        self.bands = self.bands or tuple(bands or scene.indexes)

    def _is_scene(
        self,
        files: dict[str, str],
        sensor: Sensor,
        bands: Sequence[int | str],
        records: Records | None,
    ) -> bool:
        """Tell whether files that may be one scene are, opening none that is known."""
        if records is not None and records.knows(files, bands):
            return True
        return belong_together(files, tuple(sensor.drivers or ()))

    def _check_bands(self, scene: Scene, bands: Sequence[int | str] | None) -> None:
        """Refuse another number of bands than the first scene has."""
        number = len(bands or scene.indexes)
        if self.bands and number != len(self.bands):
            raise ValueError(
                f'{scene.path} has {number} bands, but {self.scenes[0].path} has '
                f'{len(self.bands)}: name the bands to read with bands'
            )

    def _place(self, scene: Scene) -> Found:
        """Cut a scene to the region, and find its outline on the Earth."""
        inside: Scene | None = scene
        if self.region is not None:
            inside = scene.clip(self.region)
        if inside is None:
            return Found(scene, None)
        return Found(inside, inside.footprint)  # fails where it is not on the Earth


def _natural(names: Iterable[str]) -> list[str]:
    """Sort names by the numbers in them: B2 comes before B10."""
    return sorted(
        names,
        key=lambda name: [
            (not part.isdigit(), int(part) if part.isdigit() else 0, part)
            for part in re.split(r'(\d+)', name)
        ],
    )
