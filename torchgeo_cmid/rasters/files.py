# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which files there are: folders, globs, remote paths."""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path as LocalPath

from torchgeo.datasets.utils import Path
from torchgeo.datasets.utils import find_files as find_vsi_files

from .timeouts import time_limits

#: Endings of the files that a folder is searched for, in lower case.
EXTENSIONS = ('.tif', '.tiff')

#: Paths that GDAL resolves: a virtual file system, or a URL such as s3://.
REMOTE = re.compile(r'/vsi|[A-Za-z][A-Za-z0-9+]*://')

#: How GDAL names a raster that is a part of a file, before the name of that file.
SUBDATASET = re.compile(r'(netcdf|hdf5|zarr|gtiff_dir:(off:)?\d+):', re.IGNORECASE)

#: Files by which a folder is known as a raster, one of which it has.
ZARR = ('.zarray', '.zgroup', '.zmetadata', 'zarr.json')


def container(path: str) -> str:
    """Find the file or folder that a raster is in.

    Args:
        path: Raster, as a path or as GDAL names it: ``netcdf:"m.nc":Band1``,
            ``HDF5:"h.h5"://x``, ``ZARR:"x.zarr":/y`` or ``GTIFF_DIR:2:a.tif``.

    Returns:
        Path of the file or folder.
    """
    match = SUBDATASET.match(path)
    if match is None:
        return path
    rest = path[match.end() :]
    if rest.startswith('"'):
        return rest[1:].partition('"')[0]
    return rest if match[1].lower().startswith('gtiff') else rest.partition(':')[0]


def is_zarr(path: str) -> bool:
    """Tell whether a folder is a raster: a Zarr.

    Args:
        path: Path of the operating system.

    Returns:
        True if it is.
    """
    return any(os.path.isfile(os.path.join(path, name)) for name in ZARR)


def is_remote(path: str) -> bool:
    """Tell whether GDAL, and not the operating system, resolves a path.

    Args:
        path: A path.

    Returns:
        True for ``/vsi`` paths and URLs.
    """
    return REMOTE.match(path) is not None


def check_parts(path: str) -> None:
    """Refuse a path of GDAL's that leads to a local pipe, socket or device.

    Args:
        path: Path of a virtual file system, or URL.

    Raises:
        OSError: If opening it could wait for ever.
    """
    marks = [match.start() for match in re.finditer('/', path)]
    ends = [match.start() for match in re.finditer(r'[/},!?&]|$', path)]
    for start in marks:
        for end in ends:
            if end <= start + 1:
                continue
            part = path[start:end]
            try:
                mode = os.stat(part).st_mode
            except (OSError, ValueError):
                break
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise OSError(
                    f'{path!r}: {part!r} is a pipe, socket or device; replace, remove '
                    'or exclude it'
                )


def find_files(paths: Path | Iterable[Path]) -> list[str]:
    """List the raster files that *paths* names.

    Folders are searched recursively for ``.tif`` and ``.tiff`` in any case; hidden
    files are ignored, links to folders are followed once. A file named outright may
    have any ending, as may a folder that is a Zarr, and names of GDAL's such as
    ``netcdf:"m.nc":Band1``. ``/vsi`` paths and URLs go to GDAL as they are; ``/vsi``
    folders and archives are listed as TorchGeo lists them.

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
        path = path.removeprefix('file://')
        if is_remote(path):
            check_parts(path)
            found, hint = _find_remote(path)
        elif SUBDATASET.match(path) or is_zarr(path):
            inside = container(path)
            found = [path] if is_remote(inside) or os.path.lexists(inside) else []
            hint = f'there is no {inside!r}'
        elif os.path.isdir(path):
            found = list(_walk(path))
            hint = (
                f'the folder holds no {" or ".join(EXTENSIONS)} file; images without '
                'a georeference are for ImageFolderDataModule'
            )
        elif glob.has_magic(path) and not os.path.lexists(path):
            found = [f for f in _glob(path) if not os.path.isdir(f) or is_zarr(f)]
            hint = 'the glob matches no file'
        else:
            found = [path] if os.path.lexists(path) else []
            hint = 'no such file or folder'
        if not found:
            raise FileNotFoundError(
                f'paths={path!r}: {hint}. Give a folder, a file or a glob of GeoTIFFs.'
            )
        for file in sorted(found):  # a file and links to it are one
            known = is_remote(file) or SUBDATASET.match(file)
            files.setdefault(file if known else os.path.realpath(file), file)

    if not files:
        raise FileNotFoundError('paths is empty. Give a folder, a file or a glob.')
    return sorted(files.values())


def _find_remote(path: str) -> tuple[list[str], str]:
    """Pass a remote file on, or list a remote folder."""
    if path.startswith('/vsistdin'):
        return [], 'standard input cannot be read at random'
    if path.startswith('vrt://'):
        return [], 'write what it stands for to a file, with gdal_translate -of VRT'
    if not path.startswith('/vsi') or path.lower().endswith(EXTENSIONS):
        return [path], ''
    with time_limits():
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
