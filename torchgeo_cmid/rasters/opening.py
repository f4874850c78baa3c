# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What GDAL may open: regular files of a short list of formats, with what is theirs.

GDAL opens whatever a name or a file's content leads to: a pipe that nobody writes to, a
server that a few lines of XML name, a mask that it drops without a word where it is
damaged. So all that it would open is looked at before.
"""

import os
import stat
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import pyogrio  # type: ignore[import-untyped]
import rasterio
from rasterio.enums import MaskFlags
from rasterio.env import ensure_env_with_credentials
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from .files import EXTENSIONS, SUBDATASET, check_parts, container, is_remote
from .hdf5 import DRIVERS as HDF5
from .hdf5 import check_links
from .references import read_references
from .stamp import find_archive
from .timeouts import limits

#: GDAL's drivers of formats that hold pixels and lead nowhere else; a VRT may where its
#: sources are local files of these formats, and HDF5 is looked at for links.
DRIVERS = (
    *('GTiff', 'COG', 'JP2OpenJPEG', 'JP2KAK', 'JP2ECW', 'JP2MrSID', 'JP2Lura'),
    *('netCDF', 'HDF5', 'HDF5Image', 'Zarr', 'PNG', 'JPEG', 'VRT'),
)

#: What they are called in messages.
FORMATS = 'GeoTIFF, JPEG 2000, netCDF, HDF5, Zarr, PNG, JPEG, VRT of local files'

#: How GDAL opens. TorchGeo's command turns the search for side files off, as is best
#: for tiles in the cloud; masks and places are in side files, so here it is always on.
SETTINGS = {'GDAL_DISABLE_READDIR_ON_OPEN': 'FALSE', 'GDAL_VRT_ENABLE_PYTHON': 'NO'}

#: Endings of texts in which metadata of a product stands: GDAL looks for them by other
#: names than that of the raster too.
TEXTS = (
    *('.xml', '.txt', '.imd', '.rpb', '.rpc', '.til', '.pvl', '.dim', '.att', '.eph'),
    *('.geo', '.prj', '.tab', '.hdr', '.met', '.wld', '.mtl'),
)

#: A folder that was changed this short a time ago (ns) may change again unseen.
SETTLED = 2_000_000_000

#: VRTs within VRTs, at most.
DEPTH = 8


class Folder(NamedTuple):
    """What lies in a folder."""

    #: Names in lower case and as they are.
    names: dict[str, str]
    #: Names of pipes, sockets and devices, links to them included.
    odd: tuple[str, ...]


def environment() -> rasterio.Env:
    """Make the environment in which GDAL opens, and reads what opens late.

    Returns:
        The environment, a context manager.
    """
    return rasterio.Env(**SETTINGS, **limits())


def allowed_drivers(path: str, drivers: Sequence[str] = ()) -> list[str]:
    """List the drivers that may open a path.

    Args:
        path: Raster, as a path or as GDAL names it.
        drivers: More drivers than those of the short list.

    Returns:
        Their names. A file with an ending of GeoTIFFs is opened as such only; a VRT or
        HDF5 that is not a local file cannot be looked at before, so it is none of them.
    """
    if path.lower().endswith(EXTENSIONS):
        return ['GTiff', *drivers]
    unseen = ('VRT', *HDF5) if is_remote(container(path)) else ()
    return [*(name for name in DRIVERS if name not in unseen), *drivers]


def check_drivers(drivers: Sequence[str]) -> None:
    """Refuse names that no driver has.

    Args:
        drivers: Names of GDAL's drivers.

    Raises:
        ValueError: If GDAL has no driver of such a name.
    """
    with rasterio.Env() as env:
        known = env.drivers()
    for name in drivers:
        if name not in known:
            raise ValueError(
                f'drivers={list(drivers)}: GDAL has no driver {name!r} here; it has '
                f'{len(known)}, GTiff and PNG for example (names are case-sensitive)'
            )


def open_allowed(path: str, drivers: Sequence[str] = ()) -> DatasetReader:
    """Open a raster if it and all that GDAL would open with it may be opened.

    Args:
        path: Raster, as a path or as GDAL names it.
        drivers: More drivers than those of the short list. If VRT is among them, VRTs
            are opened whatever their sources; if HDF5 or netCDF is, links in such files
            are followed.

    Returns:
        The open file.

    Raises:
        OSError: If it, or a file that belongs to it, is no regular file, damaged, or
            not of a format of the list.
        rasterio.errors.RasterioError: If GDAL cannot open it.
    """
    mask = check_files(path, tuple(drivers))
    with environment():
        src = _reader(path, driver=allowed_drivers(path, drivers))
        src.mask_flag_enums  # noqa: B018 (finds the mask now, in this environment)
    try:
        _check_metadata(src, path)
        mask = mask or _find_in_archive(src, path)
        if mask is not None:
            _check_mask(src, path, mask)
    except BaseException:
        src.close()
        raise
    return src


@ensure_env_with_credentials  # type: ignore[untyped-decorator]
def _reader(path: str, driver: list[str]) -> DatasetReader:
    """Open a raster: rasterio.open takes one driver or all."""
    return DatasetReader(path, driver=driver)


def check_files(path: str, drivers: tuple[str, ...] = ()) -> str | None:
    """Look at all that GDAL would open with a raster, opening none of it.

    Args:
        path: Raster, as a path or as GDAL names it.
        drivers: More drivers than those of the short list.

    Returns:
        Its mask, if a file beside it holds one.

    Raises:
        OSError: If something is no regular file, damaged, or leads elsewhere.
    """
    local = container(path)
    if is_remote(local):
        check_parts(local)
        return None
    check_regular(local)
    mask = check_side_files(local)
    if not path.lower().endswith(EXTENSIONS):
        check_sources(local, drivers)
    return mask


def check_regular(path: str) -> None:
    """Refuse what is neither a file nor a folder of a format that is one.

    Args:
        path: Path of the operating system.

    Raises:
        OSError: If opening it could wait for ever, or there is nothing to open.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        kind = 'a broken link' if os.path.islink(path) else 'no such file'
        raise OSError(f'{path!r}: {kind}; replace, remove or exclude it') from error
    except OSError as error:
        if os.path.islink(path):  # to itself
            message = f'{path!r}: a broken link; replace, remove or exclude it'
            raise OSError(message) from error
        raise
    if stat.S_ISREG(mode):
        return
    if not stat.S_ISDIR(mode):
        raise OSError(
            f'{path!r}: a pipe, socket or device; replace, remove or exclude it'
        )
    for folder, _, names in os.walk(path):
        for name in names:
            inside = os.path.join(folder, name)
            if not os.path.isfile(inside):
                raise OSError(
                    f'{inside!r}: a pipe, socket, device or broken link in the folder '
                    'of a raster; replace or remove it'
                )


def look_into(folder: str) -> Folder:
    """List a folder, anew only where it has changed.

    Args:
        folder: Folder.

    Returns:
        What lies in it; nothing where that may not be seen.
    """
    try:
        changed = os.stat(folder).st_mtime_ns
        if abs(time.time_ns() - changed) < SETTLED:
            return _list.__wrapped__(folder, changed)
        return _list(folder, changed)
    except OSError:
        return Folder({}, ())


@lru_cache(maxsize=256)
def _list(folder: str, changed: int) -> Folder:
    """List a folder as it is since it was changed."""
    names, odd = {}, []
    with os.scandir(folder) as entries:
        for entry in entries:
            names[entry.name.lower()] = entry.name
            if not (entry.is_file() or entry.is_dir()) and os.path.exists(entry.path):
                odd.append(entry.name)
    return Folder(names, tuple(odd))


def check_side_files(path: str) -> str | None:
    """Look at the files beside a raster that GDAL reads with it.

    Args:
        path: Path of the raster.

    Returns:
        Its mask, if a file beside it holds one.

    Raises:
        OSError: If one is no regular file, or is damaged so that GDAL would drop it.
    """
    folder, name = os.path.split(path)
    found = look_into(folder or '.')
    lower, stem = name.lower(), os.path.splitext(name)[0].lower()
    for other in found.odd:
        if other == name:
            continue
        beside = other.lower()
        if beside.startswith((f'{stem}.', f'{stem}_')) or beside.endswith(TEXTS):
            if beside.endswith(EXTENSIONS):  # a raster of its own
                continue
            raise OSError(
                f'{os.path.join(folder, other)!r}: a pipe, socket or device beside '
                f'{name!r}, which reading that would open; remove it'
            )
    for ending in ('.aux.xml', '.ovr', '.msk.aux.xml'):
        side = found.names.get(lower + ending)
        if side is not None:
            _check_side_file(os.path.join(folder, side), name)
    mask = found.names.get(f'{lower}.msk')
    if mask is None and not found.names:  # a folder that may not be listed
        mask = f'{name}.msk' if os.path.exists(f'{path}.msk') else None
    return None if mask is None else os.path.join(folder, mask)


def _check_side_file(side: str, name: str) -> None:
    """Look at metadata or overviews beside a raster, once while they do not change."""
    check_regular(side)
    seen = os.stat(side)
    _check_content(side, name, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=2**14)
def _check_content(side: str, name: str, size: int, changed: int) -> None:
    """Look at the content of metadata or overviews beside a raster."""
    if side.lower().endswith('.aux.xml'):
        read_references(side, of=name)
        return
    try:
        with environment():
            _reader(side, driver=['GTiff', 'HFA']).close()
    except RasterioError as error:
        raise OSError(
            f'{side}: the overviews beside {name!r} are damaged, or no GeoTIFF: make '
            f'them anew with gdaladdo, or remove them ({error})'
        ) from error


def _check_mask(src: DatasetReader, path: str, mask: str) -> None:
    """Refuse a mask that GDAL does not use, in whole or for a band."""
    name = os.path.basename(path)
    remedy = 'write it anew, or remove it if all pixels are data'
    if not is_remote(mask):
        check_regular(mask)
    try:
        with environment():
            file = _reader(mask, driver=['GTiff'])
    except RasterioError as error:
        raise OSError(
            f'{mask}: the mask beside {name!r} is damaged or no mask; {remedy} '
            f'({error})'
        ) from error
    with file:
        if file.shape != src.shape:
            raise OSError(
                f'{mask}: the mask beside {name!r} has {file.height} x {file.width} '
                f'pixels instead of {src.height} x {src.width}; {remedy}'
            )
        if not is_remote(mask):
            check_whole(file, mask)
    unused = [
        band
        for band, flags in zip(src.indexes, src.mask_flag_enums, strict=True)
        if MaskFlags.all_valid in flags or MaskFlags.nodata in flags
    ]
    if unused:
        raise OSError(
            f'{mask}: the mask beside {name!r} says nothing of bands {unused[:20]} (it '
            f'lacks INTERNAL_MASK_FLAGS, or bands); {remedy}'
        )


def _find_in_archive(src: DatasetReader, path: str) -> str | None:
    """Find the mask beside a raster in a local archive, as GDAL names it."""
    archive = find_archive(path) if is_remote(path) else None
    if archive is None or not src.files or not is_remote(src.files[0]):
        return None
    seen, (name, *_) = os.stat(archive), src.files
    names = _list_archive(os.path.dirname(name), seen.st_size, seen.st_mtime_ns)
    wanted = f'{os.path.basename(name)}.msk'.lower()
    for other in names:
        if other.lower() == wanted:
            return os.path.join(os.path.dirname(name), other)
    return None


@lru_cache(maxsize=256)
def _list_archive(folder: str, size: int, changed: int) -> tuple[str, ...]:
    """List the files of a folder in an archive that stays what it is."""
    try:
        listed = pyogrio.vsi_listtree(folder)
    except (FileNotFoundError, NotADirectoryError):  # the raster alone is in it
        return ()
    return tuple(
        os.path.basename(found) for found in listed if os.path.dirname(found) == folder
    )


#: Blocks whose place in a GeoTIFF is looked up, to find out whether it is whole.
CHECKED_BLOCKS = 64


def check_whole(src: DatasetReader, path: str) -> None:
    """Find out from a sample of its blocks whether a GeoTIFF has lost its end.

    Args:
        src: The open file.
        path: Path of the operating system.

    Raises:
        OSError: If it has.
    """
    length = os.path.getsize(path)
    rows, cols = src.block_shapes[0]
    down, across = -(-src.height // rows), -(-src.width // cols)
    number = down * across
    step = -(-number // CHECKED_BLOCKS)
    # only the first band where bands are interleaved by pixel, else the outermost
    for band in {1, src.count}:
        for block in {*range(0, number, step), number - 1}:
            place = f'{block % across}_{block // across}'
            offset = src.get_tag_item(f'BLOCK_OFFSET_{place}', 'TIFF', bidx=band)
            size = src.get_tag_item(f'BLOCK_SIZE_{place}', 'TIFF', bidx=band)
            if offset and size and int(offset) + int(size) > length:
                raise OSError(
                    f'{path}: truncated, it has {length} bytes and its pixels '
                    f'reach to {int(offset) + int(size)}; replace or remove it'
                )


def _check_metadata(src: DatasetReader, path: str) -> None:
    """Refuse metadata in a file by which GDAL would follow to elsewhere."""
    for domain, keys in (
        ('OVERVIEWS', ('OVERVIEW_FILE',)),
        ('GEOLOCATION', ('X_DATASET', 'Y_DATASET')),
    ):
        tags = src.tags(ns=domain)
        for key in keys:
            if key in tags and not is_remote(container(path)):
                value = tags[key].removeprefix(':::BASE:::')
                if is_remote(container(value)) or '://' in value or '/vsi' in value:
                    raise OSError(
                        f'{path}: its metadata lead to {value!r:.200}, which is not '
                        f'followed; remove {key} from them'
                    )


def check_sources(
    path: str, drivers: tuple[str, ...] = (), above: tuple[str, ...] = ()
) -> None:
    """Refuse what leads to anything but local files of the short list.

    Args:
        path: Local file; one that is no VRT and no HDF5 passes.
        drivers: More drivers than those of the short list.
        above: VRTs that led here.

    Raises:
        OSError: If it is an HDF5 with links to other files, or a VRT and one of its
            sources, or theirs, is something else.
    """
    if os.path.isdir(path):
        _check_zarr(path)
        return
    if not set(HDF5) & set(drivers):
        check_links(path)
    if 'VRT' in drivers:
        return
    real = os.path.realpath(path)
    if real in above or len(above) == DEPTH:
        raise OSError(f'{above[0]}: its sources lead in a circle, or too deep')
    seen = os.stat(path)
    for source, local in _sources(path, seen.st_size, seen.st_mtime_ns):
        try:
            check_regular(local)
            check_side_files(local)
            check_sources(local, drivers, (*above, real))
            seen = os.stat(local)
            _try(source, drivers, seen.st_size, seen.st_mtime_ns)
        except OSError as error:
            raise OSError(f'{path}: its source cannot be used: {error}') from error


@lru_cache(maxsize=4096)
def _sources(path: str, size: int, changed: int) -> tuple[tuple[str, str], ...]:
    """List the sources of a VRT by their names and files; other files have none."""
    with open(path, 'rb') as file:
        start = file.read(1024).removeprefix(b'\xef\xbb\xbf').lstrip()
    if not start.startswith(b'<'):
        return ()
    found = []
    for value, relative in read_references(path):
        local = container(value)
        if relative is not None and not is_remote(local):
            local = os.path.join(os.path.dirname(os.path.realpath(path)), local)
        if value.lstrip().startswith('<') or '/vsi' in value or '://' in local:
            raise OSError(
                f'{path}: leads to {value!r:.200}; the sources of a VRT must be local '
                "files, or drivers must name 'VRT' to follow them wherever they lead"
            )
        name = local
        if SUBDATASET.match(value):
            name = value.replace(container(value), local, 1)
        found.append((name, local))
    return tuple(found)


@lru_cache(maxsize=2**14)
def _try(source: str, drivers: tuple[str, ...], size: int, changed: int) -> None:
    """Find out whether a source is a raster of the list, once while it stays the same.

    GDAL opens sources with any driver, and the first that finds its mark takes them. So
    a text must be a VRT, which was looked at.
    """
    with open(container(source), 'rb') as file:
        start = file.read(1024).removeprefix(b'\xef\xbb\xbf').lstrip()
    if start.startswith(b'{') or (
        start.startswith(b'<') and b'<vrtdataset' not in start.lower()
    ):
        raise OSError(f'{source}: a text, but no VRT')
    allowed = [*DRIVERS, *drivers]
    try:
        with environment():
            src = _reader(source, driver=allowed)
    except RasterioError as error:
        raise OSError(
            f'{source}: not a readable raster of {FORMATS}; for another format name '
            f'its GDAL driver in drivers ({error})'
        ) from error
    with src:
        _check_metadata(src, source)
        mask = check_side_files(container(source))
        if mask is not None:
            _check_mask(src, container(source), mask)


def _check_zarr(path: str) -> None:
    """Refuse a Zarr folder whose chunks are references to anywhere."""
    metadata = os.path.join(path, '.zmetadata')
    if os.path.isfile(metadata):
        with open(metadata, 'rb') as file:
            if b'"record_size"' in file.read():
                raise OSError(
                    f'{path}: its chunks are references to other files (kerchunk), '
                    'which are not followed; write it as a Zarr of its own'
                )
