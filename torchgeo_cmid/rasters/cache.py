# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A local cache of decoded blocks, from which patches are put together.

Random patches start anywhere, so none comes twice; the blocks they lie in do. Each is a
file in the safetensors format: pixels (C, H, W) as the raster stores them, uncompressed
so that a patch maps no more of them into memory than it needs, and where the raster
declares fill. They lie under the digest of all that the pixels depend on, appear whole
or not at all, and are never changed, so any number of processes may share a folder.

For a patch of 3 and 13 bands that takes 0.16 and 0.41 ms; zarr 3.4 takes 0.86 and 1.72,
and does not tell a block that is missing from one of zeros.
"""

import errno
import hashlib
import os
import shutil
import time
import warnings
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what rasterio.warp raises
from rasterio.errors import RasterioError
from rasterio.windows import Window
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

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
        folder = self.folder / _digest(path, source.indexes, source.grid, stamp, size)
        data, valid = image, np.empty((bottom - top, right - left), dtype=np.bool_)
        floating = False
        for row in range(top // size, -(-bottom // size)):
            for col in range(left // size, -(-right // size)):
                down, rows = _overlap(top, bottom, row * size, size)
                across, cols = _overlap(left, right, col * size, size)
                part = self._cut(folder, row, col, rows, cols)
                if part is None and self._fill(source, stamp, window, folder, row, col):
                    part = self._cut(folder, row, col, rows, cols)
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
        try:
            content = memoryview(self._place(kind, key).read_bytes())
        except OSError:
            return None
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
            self._write(self._place(kind, key), content, sync=False)

    def _place(self, kind: str, key: object) -> Path:
        """Name the file of something small."""
        return self.folder / kind / hashlib.sha256(repr(key).encode()).hexdigest()[:32]

    def _cut(
        self, folder: Path, row: int, col: int, rows: slice, cols: slice
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_]] | None:
        """Read a part of a block, if it is there and reaches so far."""
        try:
            with safe_open(_block(folder, row, col), 'numpy') as file:
                pixels = file.get_slice('pixels')
                _, height, width = pixels.get_shape()
                if rows.stop > height or cols.stop > width:
                    return None
                valid = np.ones((rows.stop - rows.start, cols.stop - cols.start), bool)
                if 'valid' in file.keys():  # noqa: SIM118 (no mapping)
                    valid = file.get_slice('valid')[rows, cols]
                return pixels[:, rows, cols], valid
        except (OSError, SafetensorError):  # absent, or damaged by something else
            return None

    def _fill(
        self,
        source: Source,
        stamp: Stamp,
        window: Window,
        folder: Path,
        row: int,
        col: int,
    ) -> bool:
        """Decode and keep a block, and those that are decoded with it."""
        if not self._writable:
            return False
        try:
            if open_raster(source.path, None, stamp).driver not in DRIVERS:
                return False
            src = open_raster(source.path, source.grid, stamp)
            (_, bottom), (_, right) = window.toranges()
            if bottom > src.height or right > src.width:
                return False
            size = _size(source)
            first, number = col, 1
            if src.block_shapes[0][1] >= src.width:  # strips: all columns at once
                layer = size**2 * np.dtype(src.dtypes[0]).itemsize
                number = max(MAX_BYTES // (layer * len(source.indexes)), 1)
                first = col // number * number
            height = min(size, src.height - row * size)
            width = min(number * size, src.width - first * size)
            strip = Window(first * size, row * size, width, height)
            data, valid, _ = source.load(strip, stamp=stamp)
        except (OSError, ValueError, RasterioError, CPLE_BaseError):
            return False  # what the window needs of it may be readable
        if take_stamp(source.path) != stamp:  # changed while it was decoded
            return False
        for i, start in enumerate(range(0, width, size), first):
            path, cols = _block(folder, row, i), slice(start, start + size)
            if i != col and path.exists():
                continue
            # safetensors writes memory as it lies, whatever the strides
            block = {
                'pixels': np.ascontiguousarray(data[..., cols]),
                'valid': np.ascontiguousarray(valid[:, cols]),
            }
            if block['valid'].all():
                del block['valid']
            if not self._write(path, save(block, {'source': source.path})):
                return False
        return True

    def _write(self, path: Path, content: bytes, sync: bool = True) -> bool:
        """Write a file whole or not at all, and tell whether it was."""
        unfinished = self.folder / f'{UNFINISHED}{uuid4().hex}'
        try:
            if not self.folder.exists():  # deleted
                self._claim()
            disk = shutil.disk_usage(self.folder)
            reserve = min(RESERVE, RESERVED_SHARE * disk.total)
            if disk.free - len(content) < reserve:
                raise OSError(
                    errno.ENOSPC, f'{reserve / 2**30:.1f} GiB are left for others'
                )
            path.parent.mkdir(exist_ok=True)
            with unfinished.open('xb') as file:
                file.write(content)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            unfinished.replace(path)
        except (FileNotFoundError, ValueError):  # deleted this moment
            return False
        except OSError as error:
            self._stop(error)
            return False
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
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
        if self._is_ours():
            for unfinished in self.folder.glob(f'{UNFINISHED}*'):
                with suppress(OSError):
                    if time.time() - unfinished.stat().st_mtime > MAX_AGE:
                        unfinished.unlink()
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            names = os.listdir(self.folder)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(
                f'cache={str(self.folder)!r} is a file, or below one: name a folder'
            ) from error
        others = [name for name in names if not name.startswith(UNFINISHED)]
        if others and not self._is_ours():  # another process may have been faster
            raise ValueError(
                f'cache={str(self.folder)!r} holds something else, {others[0]!r} for '
                'example: name an empty folder, or one that does not exist'
            )
        tag = self.folder / f'{UNFINISHED}{uuid4().hex}'
        try:
            tag.write_bytes(TAG_TEXT)
            tag.replace(self.folder / TAG)
        finally:
            with suppress(OSError):
                tag.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        """Tell whether the folder holds our tag."""
        with suppress(OSError):
            return (self.folder / TAG).read_bytes().startswith(TAG_TEXT)
        return False


@lru_cache(maxsize=4096)
def _digest(
    path: str, indexes: tuple[int, ...], grid: Grid | None, stamp: Stamp, size: int
) -> str:
    """Name the folder of a source: with anything in it changed, it is another."""
    seen = None if grid is None else grid.key
    archive = find_archive(path) if is_remote(path) else None
    key = (rasterio.__gdal_version__, path, archive, indexes, seen, stamp, size)
    return hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def _check(key: object, payload: bytes | memoryview) -> bytes:
    """Sum up what is kept under a key: under another one it is of no use."""
    digest = hashlib.sha256(repr(key).encode())
    digest.update(payload)
    return digest.digest()


def _size(source: Source) -> int:
    """Height and width of the blocks of a source."""
    size = BLOCK
    while size > SMALLEST_BLOCK and 8 * len(source.indexes) * size**2 > MAX_BYTES:
        size //= 2
    return size


def _block(folder: Path, row: int, col: int) -> Path:
    """Name the file of a block."""
    return folder / f'{row}-{col}.safetensors'


def _overlap(start: int, stop: int, first: int, size: int) -> tuple[slice, slice]:
    """Find where a range and a block overlap, in the range and in the block."""
    low, high = max(start, first), min(stop, first + size)
    return slice(low - start, high - start), slice(low - first, high - first)
