# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Rasters that are broken, lie, or were made to do harm, each written by a function."""

import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from tests.data.geotiff.data import write_scene

#: File that the pickles here write when they are unpickled.
TRAP = 'unpickled'

WIDTH, LENGTH, BITS, COMPRESSION, OFFSETS, SAMPLES, ROWS, COUNTS, PLANAR = (
    256, 257, 258, 259, 273, 277, 278, 279, 284
)  # fmt: skip
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, FORMAT = 322, 323, 324, 325, 339
SHORT, LONG = 3, 4


@dataclass(frozen=True)
class Case:
    """A file that cannot be used."""

    #: Writes the file.
    write: Callable[[Path], object]
    #: What the error says besides the name of the file (a regular expression).
    message: str
    #: Name of the file.
    name: str = 'bad.tif'
    #: Bands to read.
    bands: tuple[int, ...] | None = (1,)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        """Keep where to write."""
        self.path = str(folder / TRAP)

    def __reduce__(self) -> tuple[Any, ...]:
        """Have ``open`` called."""
        return open, (self.path, 'w')


def set_tag(path: Path, tag: int, value: int, kind: int | None = None) -> None:
    """Overwrite the (first) value of a tag in the first directory of a TIFF."""
    data = bytearray(path.read_bytes())
    (start,) = struct.unpack_from('<I', data, 4)
    (number,) = struct.unpack_from('<H', data, start)
    for entry in range(start + 2, start + 2 + 12 * number, 12):
        key, old, count = struct.unpack_from('<HHI', data, entry)
        if key != tag:
            continue
        size = {SHORT: 2, LONG: 4}[old]
        if count * size > 4:  # the values lie elsewhere
            (place,) = struct.unpack_from('<I', data, entry + 8)
            form = {SHORT: 'H', LONG: 'I'}[old]
            struct.pack_into('<H', data, entry + 2, kind or old)
            struct.pack_into(f'<{count}{form}', data, place, *[value] * count)
        else:
            struct.pack_into('<HHII', data, entry, tag, kind or LONG, 1, value)
        path.write_bytes(data)
        return
    raise KeyError(tag)


def tagged(
    tags: dict[int, int], kind: int | None = None, **scene: Any
) -> Callable[[Path], None]:
    """A scene, some of whose tags were overwritten."""

    def write(path: Path) -> None:
        write_scene(path, **{'bands': 1, **scene})
        for tag, value in tags.items():
            set_tag(path, tag, value, kind)

    return write


def content(data: bytes) -> Callable[[Path], object]:
    """A file that is anything but a raster."""
    return lambda path: path.write_bytes(data)


def cut(share: float) -> Callable[[Path], None]:
    """A scene without its end."""

    def write(path: Path) -> None:
        data = write_scene(path).read_bytes()
        path.write_bytes(data[: int(share * len(data))])

    return write


def scene(**arguments: Any) -> Callable[[Path], object]:
    """A scene that is written as asked for."""
    return lambda path: write_scene(path, **arguments)


def filled(value: float, share: float, dtype: str = 'float32') -> Callable[..., None]:
    """A scene with an undeclared value in a share of its rows."""

    def write(path: Path) -> None:
        with rasterio.open(write_scene(path, dtype='float32')) as file:
            image, profile = file.read().astype(dtype), file.profile
        image[:, : round(share * 64)] = value
        profile.update(dtype=dtype)
        with rasterio.open(path, 'w', **profile) as file:
            file.write(image)

    return write


def compressed(compress: str, **profile: Any) -> Callable[[Path], None]:
    """A compressed scene, some bytes of whose pixels were lost."""

    def write(path: Path) -> None:
        with rasterio.open(write_scene(path, dtype='uint8')) as file:
            image, original = file.read(), file.profile
        original.update(compress=compress, **profile)
        with rasterio.open(path, 'w', **original) as file:
            file.write(image)
        data = bytearray(path.read_bytes())
        start, stop = int(0.3 * len(data)), int(0.95 * len(data))
        data[start:stop] = bytes(0xA5 for _ in range(stop - start))
        path.write_bytes(data)

    return write


def other_driver(driver: str, **profile: Any) -> Callable[[Path], None]:
    """An image in another format."""

    def write(path: Path) -> None:
        kwargs = {'count': 3, 'height': 64, 'width': 64, 'dtype': 'uint8'} | profile
        with rasterio.open(path, 'w', driver=driver, **kwargs) as file:
            file.write(np.full((kwargs['count'], 64, 64), 7, dtype=kwargs['dtype']))

    return write


def pickled(path: Path) -> None:
    """A pickle that shows when it is loaded."""
    path.write_bytes(pickle.dumps(Trap(path.parent)))


def torch_checkpoint(path: Path) -> None:
    """An archive as torch.save writes it, its pickle showing when it is loaded."""
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr('archive/data.pkl', pickle.dumps(Trap(path.parent)))
        file.writestr('archive/version', '3')


def vrt(source: str, pixel_function: str = '') -> Callable[[Path], object]:
    """A virtual raster."""
    kind = 'subClass="VRTDerivedRasterBand"' if pixel_function else ''
    return content(
        f"""<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32621</SRS>
        <GeoTransform>700000, 30, 0, 7200000, 0, -30</GeoTransform>
        <VRTRasterBand dataType="UInt16" band="1" {kind}>{pixel_function}
        <SimpleSource><SourceFilename relativeToVRT="1">{source}</SourceFilename>
        </SimpleSource></VRTRasterBand></VRTDataset>""".encode()
    )


#: Code that shows when it is run.
PYTHON = f"""<PixelFunctionType>f</PixelFunctionType>
<PixelFunctionLanguage>Python</PixelFunctionLanguage><PixelFunctionCode><![CDATA[
def f(*args, **kwargs): open('{TRAP}', 'w')
]]></PixelFunctionCode>"""


def circle_of_directories(path: Path) -> None:
    """A TIFF whose directory names itself as the next one, and is no raster's."""
    path.write_bytes(struct.pack('<2sHIHI', b'II', 42, 8, 0, 8))


def bomb(path: Path) -> None:
    """One strip that claims 100,000 x 100,000 pixels."""
    with rasterio.open(write_scene(path, bands=1, dtype='uint8')) as file:
        profile = file.profile
    profile.update(compress='deflate', blockysize=64)
    with rasterio.open(path, 'w', **profile) as file:
        file.write(np.zeros((1, 64, 64), dtype=np.uint8))
    for tag, value in {WIDTH: 100_000, LENGTH: 100_000, ROWS: 100_000}.items():
        set_tag(path, tag, value)


def tile_bomb(path: Path) -> None:
    """Tiles that claim 32,768 x 32,768 pixels."""
    with rasterio.open(write_scene(path, bands=1, dtype='uint8')) as file:
        profile = file.profile
    profile.update(compress='deflate', tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(path, 'w', **profile) as file:
        file.write(np.zeros((1, 64, 64), dtype=np.uint8))
    for tag in (WIDTH, LENGTH, TILE_WIDTH, TILE_LENGTH):
        set_tag(path, tag, 32_768)


def zeros_in_deflate(path: Path) -> None:
    """A tile whose stream unpacks to a thousand times what the tile holds."""
    with rasterio.open(write_scene(path, bands=1)) as file:
        profile = file.profile
    profile.update(compress='deflate', blockysize=64)
    with rasterio.open(path, 'w', **profile) as file:
        file.write(np.ones((1, 64, 64), dtype=np.uint16))
    stream = zlib.compress(bytes(50_000_000))
    data = path.read_bytes()
    path.write_bytes(data + stream[: len(stream) // 2])  # and is cut on top
    set_tag(path, OFFSETS, len(data))
    set_tag(path, COUNTS, len(stream) // 2 + 1000)


def alpha_alone(path: Path) -> None:
    """Nothing but a mask."""
    write_scene(path, bands=1, dtype='uint8')
    with rasterio.open(path, 'r+') as file:
        file.colorinterp = [ColorInterp.alpha]


def link_to_itself(path: Path) -> None:
    """A link in a circle."""
    path.symlink_to(path.name)


def broken_mask(path: Path) -> None:
    """A scene whose mask, in a file beside it, has lost its end."""
    write_scene(path)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, 'r+') as file:
        mask = np.random.default_rng(0).random((64, 64)) < 0.5
        file.write_mask(mask)
    beside = path.with_name(f'{path.name}.msk')
    beside.write_bytes(beside.read_bytes()[:-100])


def named_pipe(path: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    """A socket."""
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def matrix(*values: float) -> Callable[[Path], object]:
    """A scene with a geotransform of one's own."""
    return lambda path: write_scene(path, transform=Affine(*values))


def flipped(seed: int) -> Callable[[Path], None]:
    """A scene with random bytes in its directory."""

    def write(path: Path) -> None:
        rng = np.random.default_rng(seed)
        data = bytearray(write_scene(path, seed=seed).read_bytes())
        for place in rng.integers(4, 300, 20):
            data[place] = rng.integers(256)
        path.write_bytes(data)

    return write


NO_RASTER = 'not a readable raster'
DAMAGED = 'unreadable, the file may be truncated or damaged'
NAN = float('nan')
ZIP = b'PK\x03\x04' + bytes(100)

#: Files that give one clear error, or are left out if that is asked for.
BAD: dict[str, Case] = {
    # no rasters at all
    'zero bytes': Case(content(b''), NO_RASTER),
    'text': Case(content(b'no raster'), NO_RASTER),
    'web page': Case(content(b'<!DOCTYPE html><p>404 Not found'), NO_RASTER),
    'zip': Case(content(ZIP), NO_RASTER),
    'hdf5': Case(content(b'\x89HDF\r\n\x1a\n' + bytes(500)), NO_RASTER),
    'pickle': Case(pickled, NO_RASTER),
    'torch checkpoint': Case(torch_checkpoint, NO_RASTER),
    'png as tif': Case(other_driver('PNG'), NO_RASTER),
    'jpeg as tif': Case(other_driver('JPEG'), NO_RASTER),
    'vrt as tif': Case(vrt('good.tif'), NO_RASTER),
    'magic alone': Case(content(b'II*\0'), NO_RASTER),
    'header alone': Case(content(struct.pack('<2sHI', b'II', 42, 8)), NO_RASTER),
    'far directory': Case(content(struct.pack('<2sHI', b'II', 42, 2**31)), NO_RASTER),
    'circle of directories': Case(circle_of_directories, NO_RASTER),
    'no TIFF but BigTIFF of the future': Case(content(b'II\x2c\0' * 20), NO_RASTER),
    # no files
    'link to itself': Case(link_to_itself, 'a broken link'),
    'broken link': Case(lambda path: path.symlink_to('nowhere'), 'a broken link'),
    'pipe': Case(named_pipe, 'a pipe, socket or device'),
    'socket': Case(unix_socket, 'a pipe, socket or device'),
    'device': Case(lambda path: path.symlink_to('/dev/zero'), 'a pipe, socket or'),
    'name that is not UTF-8': Case(content(b''), 'not UTF-8', name='b\udce9d.tif'),
    # cut
    'cut at a percent': Case(cut(0.005), NO_RASTER),
    'cut in half': Case(cut(0.5), 'truncated, it has'),
    'cut at the end': Case(cut(0.999), 'truncated, it has'),
    'offsets of text': Case(tagged({OFFSETS: 8}, kind=2, size=256), NO_RASTER),
    'strips beyond the end': Case(tagged({OFFSETS: 2**31}), 'truncated|unreadable'),
    # sizes
    '0 x N': Case(tagged({WIDTH: 0}), NO_RASTER),
    'N x 0': Case(tagged({LENGTH: 0}), NO_RASTER),
    'two milliard columns': Case(tagged({WIDTH: 2**31 - 1}), '.'),
    'four milliard rows': Case(tagged({LENGTH: 2**32 - 1}), '.'),
    'all of both': Case(tagged({WIDTH: 2**31 - 1, LENGTH: 2**31 - 1}), '.'),
    '65,535 bands': Case(tagged({SAMPLES: 65_535}), 'truncated, it has'),
    'no bands': Case(tagged({SAMPLES: 0}), '.'),
    'decompression bomb': Case(bomb, 'MiB'),
    'tiled bomb': Case(tile_bomb, 'MiB'),
    'strip that unpacks to more': Case(zeros_in_deflate, 'truncated|unreadable'),
    # pixels
    'complex': Case(tagged({FORMAT: 6, BITS: 64}), '.'),
    'unknown compression': Case(tagged({COMPRESSION: 65_000}), '.'),
    '127 bits': Case(tagged({BITS: 127}), '.'),
    '0 bits': Case(tagged({BITS: 0}), '.'),
    'unknown planes': Case(tagged({PLANAR: 9}), '.'),
    'broken deflate': Case(compressed('deflate'), 'unreadable|truncated'),
    'broken deflate in tiles': Case(
        compressed('deflate', tiled=True, blockxsize=16, blockysize=16),
        'unreadable|truncated',
    ),
    'broken zstd': Case(compressed('zstd'), 'unreadable|truncated'),
    'broken lzma': Case(compressed('lzma'), 'unreadable|truncated'),
    'broken mask': Case(broken_mask, 'unreadable|truncated'),
    'infinite': Case(filled(float('inf'), 0.5), 'NaN or infinite'),
    'larger than float32': Case(filled(1e300, 0.5, 'float64'), 'NaN or infinite'),
    'alpha alone': Case(alpha_alone, 'no band but alpha', bands=None),
    # places
    'no CRS': Case(scene(crs=None), 'no coordinate reference system'),
    'no geotransform': Case(scene(transform=Affine.identity()), 'no geotransform'),
    'local CRS': Case(scene(crs='LOCAL_CS["site",UNIT["metre",1]]'), 'outline'),
    'beyond the Earth': Case(scene(origin=(1e12, 1e12)), 'outline'),
    'latitude of 500': Case(scene(crs='EPSG:4326', origin=(0, 500)), 'outline'),
    'pixels without height': Case(matrix(30, 0, 7e5, 0, 0, 7.2e6), 'without size'),
    'pixels without area': Case(matrix(30, 30, 7e5, 30, 30, 7.2e6), 'without size'),
    'pixels of atoms': Case(matrix(1e-9, 0, 7e5, 0, -1e-9, 7.2e6), 'no area'),
    'NaN for a place': Case(matrix(30, 0, NAN, 0, -30, NAN), '.'),
    'infinite pixels': Case(matrix(float('inf'), 0, 7e5, 0, -30, 7.2e6), '.'),
    # bands
    'fewer bands': Case(
        scene(bands=2), r'has 2 bands, but \S+ has 1', name='other.tif', bands=None
    ),
    '5,000 bands': Case(
        scene(bands=5000, size=16, dtype='uint8'), '5000 bands', bands=None
    ),
    # other formats, named outright
    'container of rasters': Case(
        lambda path: path.write_bytes(b''), NO_RASTER, name='bad.nc'
    ),
    'vrt of nothing': Case(vrt('nowhere.tif'), '.', name='bad.vrt'),
    'vrt of itself': Case(vrt('bad.vrt'), '.', name='bad.vrt'),
    'vrt that runs code': Case(vrt('good.tif', PYTHON), '.', name='bad.vrt'),
}  # fmt: skip

#: Directories with random bytes: each an error or a scene, never a crash.
RANDOM: dict[str, Case] = {
    f'random {seed}': Case(flipped(seed), '.') for seed in range(12)
}

#: Files that look odd and are fine.
ODD: dict[str, Callable[[Path], object]] = {
    'antimeridian': scene(crs='EPSG:32601', res=1000, origin=(320_000, 7e6)),
    'rotated': matrix(20, 10, 7e5, 10, -20, 7.2e6),
    'south up': matrix(30, 0, 7e5, 0, 30, 7.2e6),
    'mirrored': matrix(-30, 0, 7e5, 0, -30, 7.2e6),
    'around the pole': scene(crs='EPSG:3031', res=50_000, origin=(-16e5, 16e5)),
    'longitudes to 360': scene(crs='EPSG:4326', res=1, origin=(190, 32)),
    'strips too long, which GDAL mends': tagged({COUNTS: 2**31}),
    'int8': filled(3, 0.1, 'int8'),
    'uint64': filled(2**63, 0.1, 'uint64'),
}
