# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A local cache of decoded blocks, from which patches are put together.

Random patches start anywhere, so none comes twice; the blocks they lie in do. Each is a
file in the safetensors format: pixels (C, H, W) as the raster stores them, uncompressed
so that a patch maps no more of them into memory than it needs, and where the raster
declares fill. They lie under the digest of all that the pixels depend on, appear whole
or not at all, and are never changed, so any number of processes may share a folder.
Each process sums a block up when it first uses it: one that was changed, or does not
fit, is decoded anew.

For a patch of 3 and 13 bands that takes 0.16 and 0.41 ms; zarr 3.4 takes 0.86 and 1.72,
and does not tell a block that is missing from one of zeros.
"""

import errno
import hashlib
import json
import mmap
import os
import time
import warnings
import zlib
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window
from safetensors.numpy import save

from .confined import ConfinedFolder
from .errors import GDAL_ERRORS
from .files import is_remote
from .raster import Grid, open_raster
from .source import EXACT, Pixels, Source
from .stamp import Stamp, find_archive, take_stamp

#: Height and width of a block in pixels, that of the tiles of a COG, and what it is
#: halved to where there are too many bands for its bytes.
BLOCK = 512
SMALLEST_BLOCK = 64
MAX_BYTES = 2**26

#: Formats whose pixels are in the files that a stamp looks at; a VRT's are elsewhere.
DRIVERS = {'GTiff', 'JP2OpenJPEG'}

#: Space that is left free on the disk, for checkpoints: bytes, or a share if less.
RESERVE = 10 * 2**30
RESERVED_SHARE = 0.05

#: What marks a folder as a cache, for us and for backups: https://bford.info/cachedir
TAG = 'CACHEDIR.TAG'
TAG_TEXT = b"""Signature: 8a477f597d28d172789f06886806bc55
# Decoded blocks of rasters, written by torchgeo-cmid. May be deleted at any time.
"""

#: Number of the format of blocks: those of another one are decoded anew.
FORMAT = 2

#: Data types by their names in safetensors.
TYPES = {
    f'{kind}{8 * size}': np.dtype(f'{code}{size}')
    for kind, code, sizes in (
        ('U', '<u', (1, 2, 4, 8)),
        ('I', '<i', (1, 2, 4, 8)),
        ('F', '<f', (2, 4, 8)),
    )
    for size in sizes
} | {'BOOL': np.dtype('?')}

#: Blocks that a process remembers to have summed up, at most.
REMEMBERED = 2**16

#: Bytes at the beginning of small files that tell whether they are whole.
DIGEST = 32

#: How the names of files begin that are not finished, and the seconds they are kept.
UNFINISHED = '.unfinished-'
MAX_AGE = 86_400


class BlockCache:
    """Decoded blocks of rasters in a local folder."""

    def __init__(self, folder: str) -> None:
        """Initialize a new BlockCache instance.

        Args:
            folder: Local folder, made if need be.

        Raises:
            OSError: If the folder cannot be made.
            ValueError: If it is something else than a folder of such blocks.
        """
        if not folder or is_remote(folder):
            raise ValueError(f'cache={folder!r} is no local folder: name one')
        self.folder = Path(os.path.abspath(os.path.expanduser(folder)))
        #: Where it really is: from now on nothing is written anywhere else.
        self._confined = ConfinedFolder(os.path.realpath(self.folder))
        #: Blocks that were summed up, by what tells one from any other.
        self._known: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self._writable = True
        try:
            self._claim()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(
                    error.errno,
                    f'cache={str(self.folder)!r} cannot be made: {error.strerror}',
                ) from error
            self._stop(error)

    def load(
        self, source: Source, window: Window, image: NDArray[np.float32] | None = None
    ) -> Pixels | None:
        """Put a window together from blocks, decoding and keeping those that lack.

        Args:
            source: File, bands and grid.
            window: The window.
            image: Where to put the pixels (C, H, W), if float32 holds them exactly.

        Returns:
            What *source* itself would load; None where it has to, because a block
            cannot be decoded whole or not be kept.
        """
        path = source.path if is_remote(source.path) else os.path.abspath(source.path)
        stamp = take_stamp(path)
        (top, bottom), (left, right) = window.toranges()
        if stamp is None or top < 0 or left < 0:
            return None
        size = _size(source)
        folder = _digest(
            path, source.indexes, source.paletted, source.grid, stamp, size
        )
        data, valid = image, np.empty((bottom - top, right - left), dtype=np.bool_)
        floating = False
        for row in range(top // size, -(-bottom // size)):
            for col in range(left // size, -(-right // size)):
                down, rows = _overlap(top, bottom, row * size, size)
                across, cols = _overlap(left, right, col * size, size)
                part = self._cut(source, folder, row, col, rows, cols)
                if part is None and self._fill(source, stamp, window, folder, row, col):
                    part = self._cut(source, folder, row, col, rows, cols)
                if part is None:
                    return None
                pixels, declared = part
                if data is None or (data is image and pixels.dtype.name not in EXACT):
                    data = np.empty((len(pixels), *valid.shape), dtype=pixels.dtype)
                data[:, down, across] = pixels
                valid[down, across] = declared
                floating = pixels.dtype.kind == 'f'
        assert data is not None
        return Pixels(data, valid, floating)

    def find(self, kind: str, key: object) -> bytes | None:
        """Look up something small that was kept beside the blocks.

        Args:
            kind: What it is.
            key: All that it depends on, with a ``repr`` that tells it from any other.

        Returns:
            What was kept, None if there is nothing, or it is damaged.
        """
        file = self._confined.open(kind, _hash(key))
        if file is None:
            return None
        with os.fdopen(file, 'rb') as opened:
            content = memoryview(opened.read())
        digest, payload = content[:DIGEST], content[DIGEST:]
        return bytes(payload) if digest == _check(key, payload) else None

    def keep(self, kind: str, key: object, payload: bytes) -> None:
        """Keep something small beside the blocks, with what tells whether it is whole.

        Args:
            kind: What it is: the name of a folder.
            key: All that it depends on, with a ``repr`` that tells it from any other.
            payload: What to keep.
        """
        if self._writable:
            # after a crash of the machine it may not be whole, and that shows
            content = _check(key, payload) + payload
            self._write(kind, _hash(key), content, sync=False)

    def _cut(
        self, source: Source, folder: str, row: int, col: int, rows: slice, cols: slice
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_]] | None:
        """Read a part of a block, if it is there, whole, and reaches so far."""
        file = self._confined.open(folder, _block(row, col))
        if file is None:
            return None
        try:
            seen = os.fstat(file)
            content = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
            known = seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns
            block = _unpack(content, checked=known in self._known)
            pixels, valid = block.pop('pixels'), block.pop('valid', None)
            if block or len(pixels) != len(source.indexes):
                return None
            if source.dtypes and pixels.dtype != source.stored:
                return None
            height, width = pixels.shape[1:]
            if rows.stop > height or cols.stop > width:
                return None
            if valid is None:
                shown = np.ones((rows.stop - rows.start, cols.stop - cols.start))
                valid = shown.astype(np.bool_)
            elif valid.shape != (height, width) or valid.dtype != np.bool_:
                return None
            else:
                valid = valid[rows, cols].copy()
            self._known[known] = None
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            part = pixels[:, rows, cols].copy()
            return part, valid
        except (KeyError, TypeError, ValueError):  # damaged by something else
            return None
        finally:
            os.close(file)

    def _fill(
        self,
        source: Source,
        stamp: Stamp,
        window: Window,
        folder: str,
        row: int,
        col: int,
    ) -> bool:
        """Decode and keep a block, and those that are decoded with it."""
        if not self._writable:
            return False
        try:
            drivers = source.drivers
            if open_raster(source.path, None, stamp, drivers).driver not in DRIVERS:
                return False
            src = open_raster(source.path, source.grid, stamp, drivers)
            (_, bottom), (_, right) = window.toranges()
            if bottom > src.height or right > src.width:
                return False
            size = _size(source)
            first, number = col, 1
            if src.block_shapes[0][1] >= src.width:  # strips: all columns at once
                layer = size**2 * source.stored.itemsize
                number = max(MAX_BYTES // (layer * len(source.indexes)), 1)
                first = col // number * number
            height = min(size, src.height - row * size)
            width = min(number * size, src.width - first * size)
            strip = Window(first * size, row * size, width, height)
            data, valid, _ = source.load(strip, stamp=stamp)
        except (OSError, ValueError, *GDAL_ERRORS):
            return False  # what the window needs of it may be readable
        if take_stamp(source.path) != stamp:  # changed while it was decoded
            return False
        for i, start in enumerate(range(0, width, size), first):
            name, cols = _block(row, i), slice(start, start + size)
            if i != col and self._confined.holds(folder, name):
                continue
            # safetensors writes memory as it lies, whatever the strides
            block = {
                'pixels': np.ascontiguousarray(data[..., cols]),
                'valid': np.ascontiguousarray(valid[:, cols]),
            }
            if block['valid'].all():
                del block['valid']
            about = {'source': source.path, 'sum': _sum(block)}
            if not self._write(folder, name, save(block, about)):
                return False
        return True

    def _write(self, folder: str, name: str, content: bytes, sync: bool = True) -> bool:
        """Write a file whole or not at all, and tell whether it was."""
        try:
            if not self._confined.same():  # deleted, or another one
                self._claim()
            free, total = self._confined.space()
            reserve = min(RESERVE, RESERVED_SHARE * total)
            if free - len(content) < reserve:
                raise OSError(
                    errno.ENOSPC, f'{reserve / 2**30:.1f} GiB are left for others'
                )
            unfinished = f'{UNFINISHED}{uuid4().hex}'
            self._confined.write(folder, name, content, unfinished, sync)
        except (FileNotFoundError, ValueError):  # deleted this moment
            return False
        except OSError as error:
            self._stop(error)
            return False
        return True

    def _stop(self, error: OSError) -> None:
        """Go on without writing."""
        self._writable = False
        warnings.warn(
            f'cache={str(self.folder)!r}: this process goes on without adding to it '
            f'({error})',
            stacklevel=2,
        )

    def _claim(self) -> None:
        """Make the folder, or make sure that it is ours, and tidy up."""
        try:
            self._confined.take_on()
            if self._is_ours():
                self._confined.tidy(UNFINISHED, time.time() - MAX_AGE)
                return
            names = self._confined.names()
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f'cache={str(self.folder)!r} is a file, or below one: name a folder'
            ) from error
        others = [name for name in names if not name.startswith(UNFINISHED)]
        if others and not self._is_ours():  # another process may have been faster
            self._confined.leave()
            raise ValueError(
                f'cache={str(self.folder)!r} holds something else, {others[0]!r} for '
                'example: name an empty folder, or one that does not exist'
            )
        unfinished = f'{UNFINISHED}{uuid4().hex}'
        self._confined.write('', TAG, TAG_TEXT, unfinished, sync=False)

    def _is_ours(self) -> bool:
        """Tell whether the folder holds our tag."""
        file = self._confined.open('', TAG)
        if file is None:
            return False
        with os.fdopen(file, 'rb') as opened:
            return opened.read(len(TAG_TEXT)) == TAG_TEXT


@lru_cache(maxsize=4096)
def _digest(
    path: str,
    indexes: tuple[int, ...],
    paletted: bool,
    grid: Grid | None,
    stamp: Stamp,
    size: int,
) -> str:
    """Name the folder of a source: with anything in it changed, it is another."""
    seen = None if grid is None else grid.key
    archive = find_archive(path) if is_remote(path) else None
    version = FORMAT, rasterio.__gdal_version__
    return _hash((version, path, archive, indexes, paletted, seen, stamp, size))


def _hash(key: object) -> str:
    """Name what depends on a key."""
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def _check(key: object, payload: bytes | memoryview) -> bytes:
    """Sum up what is kept under a key: under another one it is of no use."""
    digest = hashlib.sha256(repr(key).encode())
    digest.update(payload)
    return digest.digest()


def _sum(block: dict[str, NDArray[Any]]) -> str:
    """Sum a block up: its pixels, their type and shape."""
    number = 0
    for name in sorted(block):
        array = block[name]
        what = name, array.dtype.newbyteorder('<').str, array.shape
        number = zlib.crc32(repr(what).encode(), number)
        number = zlib.crc32(np.ascontiguousarray(array).data, number)
    return f'{number:08x}'


def _unpack(content: mmap.mmap, checked: bool) -> dict[str, NDArray[Any]]:
    """See the arrays of a file in the safetensors format, if they are as they were.

    The package opens files by their names only, through links too.
    """
    start = 8 + int.from_bytes(content[:8], 'little')
    if not 8 < start <= len(content):
        raise ValueError('damaged')
    head = json.loads(content[8:start])
    about = head.pop('__metadata__')
    block: dict[str, NDArray[Any]] = {}
    for name, entry in head.items():
        first, last = entry['data_offsets']
        shape, dtype = entry['shape'], TYPES[entry['dtype']]
        number = int(np.prod(shape, dtype=np.int64))
        if min(first, number, *shape) < 0 or last - first != number * dtype.itemsize:
            raise ValueError('damaged')
        array = np.frombuffer(content, dtype, number, start + first)
        block[name] = array.reshape(shape)
    if not checked and about['sum'] != _sum(block):
        raise ValueError('damaged')
    return block


def _size(source: Source) -> int:
    """Height and width of the blocks of a source."""
    size = BLOCK
    while size > SMALLEST_BLOCK and 8 * len(source.indexes) * size**2 > MAX_BYTES:
        size //= 2
    return size


def _block(row: int, col: int) -> str:
    """Name the file of a block."""
    return f'{row}-{col}.safetensors'


def _overlap(start: int, stop: int, first: int, size: int) -> tuple[slice, slice]:
    """Find where a range and a block overlap, in the range and in the block."""
    low, high = max(start, first), min(stop, first + size)
    return slice(low - start, high - start), slice(low - first, high - first)
