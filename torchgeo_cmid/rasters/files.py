# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which files there are: folders, globs, remote paths; files of one band grouped."""

import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path as LocalPath

from torchgeo.datasets.utils import Path
from torchgeo.datasets.utils import find_files as find_vsi_files

from .dates import GROUPS

#: Endings of the files that a folder is searched for, in lower case.
EXTENSIONS = ('.tif', '.tiff')

#: Paths that GDAL resolves: a virtual file system, or a URL such as s3://.
REMOTE = re.compile(r'/vsi|[A-Za-z][A-Za-z0-9+]*://')


def is_remote(path: str) -> bool:
    """Tell whether GDAL, and not the operating system, resolves a path.

    Args:
        path: A path.

    Returns:
        True for ``/vsi`` paths and URLs.
    """
    return REMOTE.match(path) is not None


def find_files(paths: Path | Iterable[Path]) -> list[str]:
    """List the raster files that *paths* names.

    Folders are searched recursively for ``.tif`` and ``.tiff`` in any case; hidden
    files are ignored, links to folders are followed once. A file named outright may
    have any ending. ``/vsi`` paths and URLs go to GDAL as they are; ``/vsi`` folders
    and archives are listed as TorchGeo lists them.

    Args:
        paths: A folder, a file or a glob, or several of them.

    Returns:
        The files, sorted and each of them once.

    Raises:
        FileNotFoundError: If a path does not exist, a folder holds no GeoTIFF, or a
            glob matches nothing.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]

    files: dict[str, str] = {}
    for path in [os.path.expanduser(os.fspath(path)) for path in paths]:
        if is_remote(path):
            found, hint = _find_remote(path)
        elif os.path.isdir(path):
            found = list(_walk(path))
            hint = f'the folder holds no {" or ".join(EXTENSIONS)} file'
        elif glob.has_magic(path) and not os.path.lexists(path):
            found = [file for file in _glob(path) if not os.path.isdir(file)]
            hint = 'the glob matches no file'
        else:
            found = [path] if os.path.lexists(path) else []
            hint = 'no such file or folder'
        if not found:
            raise FileNotFoundError(
                f'paths={path!r}: {hint}. Give a folder, a file or a glob of GeoTIFFs.'
            )
        for file in sorted(found):  # a file and links to it are one
            files.setdefault(file if is_remote(file) else os.path.realpath(file), file)

    if not files:
        raise FileNotFoundError('paths is empty. Give a folder, a file or a glob.')
    return sorted(files.values())


def group_by_band(files: list[str], filename_regex: str) -> list[str | dict[str, str]]:
    """Put the files that hold one band each of the same scene together.

    The files of a scene lie in one folder and differ in the group ``band`` of their
    names alone, as :class:`~torchgeo.datasets.RasterDataset` has it.

    Args:
        files: Files, sorted.
        filename_regex: Verbose regular expression with a group named ``band``, or one
            of those that tell the time of a scene. Files that it does not match are
            left out; one that it matches without the group ``band`` holds all bands of
            its scene.

    Returns:
        For each scene its file, or its files by band.

    Raises:
        FileNotFoundError: If it matches no file.
        ValueError: If it is not a regular expression with one of these groups.
    """
    try:
        regex = re.compile(filename_regex, re.VERBOSE)
    except re.error as error:
        raise ValueError(
            f'filename_regex={filename_regex!r} is no regular expression: {error}'
        ) from error
    if not {'band', *GROUPS} & set(regex.groupindex):
        raise ValueError(
            f'filename_regex={filename_regex!r} has no group named band, date, start '
            r'or stop; mark where it stands, for example .*_(?P<band>B\d+)\.TIF'
        )

    for one, other in (('start', 'stop'), ('stop', 'start')):
        if one in regex.groupindex and other not in regex.groupindex:
            raise ValueError(
                f'filename_regex={filename_regex!r} has a group {one}, but none named '
                f'{other}: the time of a scene needs both, or one named date'
            )

    scenes: dict[tuple[str, str], str | dict[str, str]] = {}
    for file in files:
        folder, _, name = file.rpartition('/')
        match = regex.match(name)
        if match is None:
            continue
        if match.groupdict().get('band') is None:
            scenes[folder, name] = file
            continue
        rest = f'{name[: match.start("band")]}*{name[match.end("band") :]}'
        bands = scenes.setdefault((folder, rest), {})
        assert isinstance(bands, dict)  # no file name holds the key of another
        bands[match['band']] = file
    if not scenes:
        raise FileNotFoundError(
            f'filename_regex={filename_regex!r} matches none of {len(files)} files, '
            f'for example {os.path.basename(files[0])}'
        )
    return list(scenes.values())


def _find_remote(path: str) -> tuple[list[str], str]:
    """Pass a remote file on, or list a remote folder."""
    if path.startswith('/vsistdin'):
        return [], 'standard input cannot be read at random'
    if not path.startswith('/vsi') or path.lower().endswith(EXTENSIONS):
        return [path], ''
    found = find_vsi_files(path)
    if len(found) == 1 and found[0] == path:  # a file with another ending
        return found, ''
    found = [file for file in found if file.lower().endswith(EXTENSIONS)]
    return found, f'no such file, or a folder without {" or ".join(EXTENSIONS)} files'


def _walk(root: str) -> Iterator[str]:
    """Search a folder, entering each folder once however many links lead there."""
    seen = {os.path.realpath(root)}
    for folder, subfolders, names in os.walk(root, onerror=_refuse, followlinks=True):
        entered = []
        for name in sorted(subfolders):
            target = os.path.realpath(os.path.join(folder, name))
            if not name.startswith('.') and target not in seen:
                seen.add(target)
                entered.append(name)
        subfolders[:] = entered
        for name in names:
            # a pipe or a broken link too: check_raster says so
            if name.lower().endswith(EXTENSIONS) and not name.startswith('.'):
                yield os.path.join(folder, name)


def _refuse(error: OSError) -> None:
    """Say which folder cannot be listed: os.walk would pass over it."""
    raise error


def _glob(pattern: str) -> Iterator[str]:
    """Expand a glob; unlike with the module glob, ** follows no links in circles."""
    parts = LocalPath(pattern).parts
    first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    root = LocalPath(*parts[:first])
    for path in root.glob(os.path.join(*parts[first:])):
        if not any(part.startswith('.') for part in path.relative_to(root).parts):
            yield str(path)
