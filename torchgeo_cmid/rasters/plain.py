# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""An image without a place: PNG, JPEG or TIFF, opened alone and read once."""

import os
import warnings

import numpy as np
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetReader
from rasterio.windows import Window

from .errors import GDAL_ERRORS
from .opening import check_regular

#: Drivers by the ending of a file.
FORMATS = ('PNG', 'JPEG', 'GTiff')

#: Bytes that an image may have when it is decoded, at most.
MAX_BYTES = 2**32

#: Nothing beside the image is looked for: listing a folder of a million names for each
#: of them would take seconds. What is cut off is an error, not grey.
SETTINGS = {
    'GDAL_DISABLE_READDIR_ON_OPEN': 'EMPTY_DIR',
    'GDAL_PAM_ENABLED': 'NO',
    'GDAL_ERROR_ON_LIBJPEG_WARNING': 'YES',
}

Read = tuple[np.ndarray, np.ndarray, tuple[int, int, int]]


def read_image(path: str, down: float, across: float, size: int) -> Read:
    """Read a square of an image, as it is stored: orientations of EXIF are not applied.

    Numbers of colours in a table become red, green and blue; alpha is no band, and what
    is transparent is no data.

    Args:
        path: Local file.
        down: Where the square lies between top (0) and bottom (1).
        across: Where it lies between left (0) and right (1).
        size: Its height and width, less where the image is smaller.

    Returns:
        Pixels (C, n, n) of the file's data type; where they are data (n, n); row,
        column and n.

    Raises:
        OSError: If it is no regular file, or cannot be read.
        ValueError: If its pixels are CMYK, complex, of fewer than 8 bits, or too many.
    """
    check_regular(path)
    if path.lower().endswith('.png'):
        with open(path, 'rb') as file:
            file.seek(max(0, os.path.getsize(path) - 4096))
            if b'IEND' not in file.read():  # GDAL reads zeros where it is cut off
                raise OSError(f'{path}: truncated; replace or remove it')
    try:
        with rasterio.Env(**SETTINGS), warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with DatasetReader(path, driver=list(FORMATS)) as src:
                return _read(src, path, down, across, size)
    except UnicodeEncodeError as error:
        raise OSError(f'{path!r}: its name is not UTF-8; rename it') from error
    except GDAL_ERRORS as error:
        raise OSError(
            f'{path}: not a readable PNG, JPEG or TIFF, or damaged; replace or remove '
            f'it ({error.__cause__ or error})'
        ) from error


def _read(src: DatasetReader, path: str, down: float, across: float, size: int) -> Read:
    """Read a square of an open image."""
    if src.tags(ns='IMAGE_STRUCTURE').get('SOURCE_COLOR_SPACE') == 'CMYK':
        raise ValueError(f'{path}: its pixels are CMYK; convert it to RGB')
    for dtype in src.dtypes:
        if dtype.startswith('complex') or np.dtype(dtype).kind not in 'iuf':
            raise ValueError(
                f'{path}: its pixels are {dtype}; integers or floats are needed'
            )
    decoded = src.height * src.width * src.count * np.dtype(src.dtypes[0]).itemsize
    block = src.block_shapes[0][0] * src.block_shapes[0][1] * src.count
    if decoded > MAX_BYTES or block > MAX_BYTES // 8:
        raise ValueError(
            f'{path}: {src.height} x {src.width} pixels of {src.count} bands take '
            f'{decoded / 2**30:.1f} GiB decoded; cut it into tiles'
        )
    colors = src.colorinterp
    bands = [i for i in src.indexes if colors[i - 1] != ColorInterp.alpha]
    if not bands:
        raise ValueError(f'{path}: has no band but alpha')
    paletted = [colors[i - 1] for i in bands] == [ColorInterp.palette]
    bits = int(src.tags(1, ns='IMAGE_STRUCTURE').get('NBITS', 8))
    if bits < 8 and not paletted:
        raise ValueError(f'{path}: has {bits} bits per pixel; convert it to 8')
    side = min(size, src.height, src.width)
    row = int(down * (src.height - side + 1))
    col = int(across * (src.width - side + 1))
    window = Window(col, row, side, side)
    data = src.read(bands, window=window)
    valid = src.read_masks(bands, window=window).all(axis=0)
    if paletted:
        colours = src.colormap(1)
        table = np.zeros((max(256, max(colours) + 1), 4), dtype=np.uint8)
        table[list(colours)] = list(colours.values())
        looked_up = table[data[0]]
        valid &= looked_up[..., 3] > 0
        data = np.ascontiguousarray(looked_up[..., :3].transpose(2, 0, 1))
    if data.dtype.kind == 'f':
        valid &= np.isfinite(data).all(axis=0)
    return data, valid, (row, col, side)
