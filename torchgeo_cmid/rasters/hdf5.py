# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where an HDF5 or netCDF-4 file leads to other files: GDAL would read their pixels."""

import os
from functools import lru_cache

import h5py

#: Links within one file, at most: all of them are looked at.
MAX_LINKS = 100_000

#: Sources of one virtual data set, at most.
MAX_SOURCES = 100_000

#: Names of GDAL's drivers that read HDF5; naming one has links followed.
DRIVERS = ('HDF5', 'HDF5Image', 'netCDF')

#: What h5py raises where a file is damaged.
ERRORS = (OSError, RuntimeError, KeyError, ValueError)


def check_links(path: str) -> None:
    """Refuse an HDF5 file with links, storage or virtual data sets in other files.

    Nothing that is named is opened. Soft links are passed over: what they lead to in
    the file is met on its own.

    Args:
        path: Local regular file; one that is no HDF5 passes.

    Raises:
        OSError: If it leads elsewhere, is damaged, or holds too many links.
    """
    seen = os.stat(path)
    _check(path, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=2**14)
def _check(path: str, size: int, changed: int) -> None:
    """Look at a file once while it stays the same."""
    if not h5py.is_hdf5(path):
        return
    try:
        # no lock: file systems without locks would refuse it, and nothing is written
        with h5py.File(path, 'r', locking=False) as file:
            found = _walk(file)
    except ERRORS as error:
        raise OSError(
            f'{path}: the HDF5 file is damaged; replace, remove or exclude it '
            f'({error!s:.200})'
        ) from error
    if found is not None:
        raise OSError(f'{path}: {found}')


def _walk(file: h5py.File) -> str | None:
    """Walk from link to link, each object once, and tell what leads elsewhere."""
    met, number = set(), 0
    waiting: list[tuple[str, h5py.h5g.GroupID]] = [('', file['/'].id)]
    while waiting:
        above, group = waiting.pop()
        for name in group:
            number += 1
            if number > MAX_LINKS:
                return (
                    f'it holds more than {MAX_LINKS} links; copy the data wanted to a '
                    'file of its own, with h5copy'
                )
            where = f'{above}/{name.decode(errors="replace")}'
            kind = group.links.get_info(name).type
            if kind == h5py.h5l.TYPE_SOFT:
                continue
            if kind == h5py.h5l.TYPE_EXTERNAL:
                target, inside = group.links.get_val(name)
                return _refusal(f'{where!r:.200} is an external link', target, inside)
            if kind != h5py.h5l.TYPE_HARD:
                return f'{where!r:.200} is a link of an unknown kind; remove it'
            item = h5py.h5o.open(group, name)
            address = h5py.h5o.get_info(item).addr
            if address in met:
                continue
            met.add(address)
            if isinstance(item, h5py.h5g.GroupID):
                waiting.append((where, item))
            elif isinstance(item, h5py.h5d.DatasetID):
                refusal = _look_at(item.get_create_plist(), where)
                if refusal is not None:
                    return refusal
    return None


def _look_at(created: h5py.h5p.PropDCID, where: str) -> str | None:
    """Tell where the pixels of a data set are, if not in its file."""
    if created.get_external_count():
        target = created.get_external(0)[0]
        return _refusal(f'the data of {where!r:.200} are stored outside', target)
    if created.get_layout() != h5py.h5d.VIRTUAL:
        return None
    count = created.get_virtual_count()
    if count > MAX_SOURCES:
        return f'{where!r:.200} is made of {count} others, more than {MAX_SOURCES}'
    for i in range(count):
        target = created.get_virtual_filename(i)
        if target != '.':  # the file itself
            inside = created.get_virtual_dsetname(i)
            return _refusal(f'{where!r:.200} is a virtual data set', target, inside)
    return None


def _refusal(what: str, target: str | bytes, inside: str | bytes = '') -> str:
    """Say what leads where, and what to do."""
    file, item = (
        text.decode(errors='replace') if isinstance(text, bytes) else text
        for text in (target, inside)
    )
    return (
        f'{what}, which leads to {file!r:.200}'
        + f', {item!r:.200}' * bool(item)
        + '. Links to other files are not followed: copy the data into one file '
        '(nccopy, or h5repack of the file that holds them), or name the GDAL driver '
        f'in drivers, as drivers=[{DRIVERS[0]!r}], to follow them wherever they lead'
    )
