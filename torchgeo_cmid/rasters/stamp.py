# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which files make up a raster, and by what is seen that one of them has changed."""

import os
import re
from bisect import bisect_left
from functools import lru_cache

from .files import container, is_remote

#: Sizes and times of change of the files that make up a raster.
Stamp = tuple[tuple[int, int] | None, ...]

#: The same of all files of a folder that may belong to a raster: name, size in bytes,
#: time of change in nanoseconds.
Seen = tuple[tuple[str, int, int], ...]

#: What GDAL puts before the path of an archive, or rasterio before that of a file.
PREFIXES = re.compile(r'(/vsi\w+/|[\w+]+://)+\{?')


def take_stamp(path: str) -> Stamp | None:
    """Look at the files that make up a raster, once for every patch that is read.

    Args:
        path: Raster file, as a path or as GDAL names it.

    Returns:
        Size and time of change of the file, its mask, its metadata and its world files,
        None for those that do not exist. An archive stands for what is in it; anything
        else that is not on a local disk is taken to stay what it is. None if there is
        nothing to go by.
    """
    path = container(path)
    if is_remote(path):
        if '/vsimem/' in path:  # each process has its own
            return None
        archive = find_archive(path)
        if archive is None:
            return ()
        path = archive
    stamp = tuple(map(_stat, _parts(path)))
    return None if stamp[0] is None else stamp


class Stamps:
    """What was seen of many rasters, each folder listed once.

    GDAL takes the georeference of ``A.TIF`` from ``A.TFW``, ``a.tab`` or
    ``A.tif.aux.xml``: from any file of the same name with another ending, in any case.
    So all of these count, also where one more comes or goes.
    """

    def __init__(self) -> None:
        """Initialize a new Stamps instance."""
        self._names: dict[str, list[tuple[str, str]] | None] = {}
        self._first: dict[str, Seen | None] = {}

    def first(self, path: str) -> Seen | None:
        """Look at a raster, and remember what was seen before it was ever opened.

        Args:
            path: Raster file, as a path or as GDAL names it.

        Returns:
            What was seen when it was first asked for, None if there is nothing to go
            by: see :func:`take_stamp`.
        """
        if path not in self._first:
            self._first[path] = self._look(path)
        return self._first[path]

    def unchanged(self, path: str) -> bool:
        """Tell whether a raster is what it was at first.

        Args:
            path: Raster file, as a path or as GDAL names it.

        Returns:
            False also if there is nothing to go by.
        """
        first = self.first(path)
        return first is not None and self._look(path) == first

    def _look(self, path: str) -> Seen | None:
        """Look at the files beside a raster that have its name."""
        path = container(path)
        if is_remote(path):
            if '/vsimem/' in path:
                return None
            archive = find_archive(path)
            if archive is None:
                return ()
            path = archive
        folder, name = os.path.split(path)
        if _stat(path) is None:
            return None
        if folder not in self._names:
            self._names[folder] = _list(folder or '.')
        known = self._names[folder]
        if known is None:  # what lies beside it is not to be seen
            return None
        stem = f'{os.path.splitext(name)[0].lower()}.'
        beside = {name}
        for lower, other in known[bisect_left(known, (stem, '')) :]:
            if not lower.startswith(stem):
                break
            beside.add(other)
        seen = []
        for other in sorted(beside):
            stat = _stat(os.path.join(folder, other))
            if stat is not None:
                seen.append((other, *stat))
        return tuple(seen)


def _list(folder: str) -> list[tuple[str, str]] | None:
    """List the files of a folder by their names in lower case, if that is allowed."""
    try:
        return sorted((name.lower(), name) for name in os.listdir(folder))
    except OSError:
        return None


def _stat(path: str) -> tuple[int, int] | None:
    """Look up size and time of change (nanoseconds)."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=4096)
def _parts(path: str) -> tuple[str, ...]:
    """List the files that GDAL reads with a raster, whether they exist or not."""
    root, ending = os.path.splitext(path)
    worlds = (f'{ending[:2]}{ending[-1:]}w', f'{ending}w', '.wld')
    return path, f'{path}.msk', f'{path}.aux.xml', *(root + world for world in worlds)


@lru_cache(maxsize=4096)
def find_archive(path: str) -> str | None:
    """Find the local file that a path of GDAL starts with.

    Args:
        path: Path of a virtual file system, or URL.

    Returns:
        The archive, or the file itself; None if there is none on a local disk.
    """
    rest = re.sub(r'[}!].*', '', PREFIXES.sub('', path, count=1))
    ends = [match.start() for match in re.finditer('/', rest)] + [len(rest)]
    found = (rest[:end] for end in ends if os.path.isfile(rest[:end]))
    return next(map(os.path.abspath, found), None)
