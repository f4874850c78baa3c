# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where a patch lies, exactly: derived from integers, which no precision harms."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.transform import array_bounds
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .scene import Scene


class Georeference(NamedTuple):
    """Where the pixels of a patch lie, in double precision."""

    #: Coordinate reference system of the scene.
    crs: CRS
    #: Maps (column, row) in the patch to (x, y) in *crs*.
    transform: Affine
    #: Lowest x and y, highest x and y in *crs*.
    bounds: tuple[float, float, float, float]


def locate(scene: Scene, row: int, col: int, size: int, pixels: int) -> Georeference:
    """Find where a patch lies.

    Args:
        scene: The scene.
        row: First row of the patch, in pixels of the scene.
        col: First column of the patch, in pixels of the scene.
        size: Height and width of the patch, in pixels of the scene.
        pixels: Height and width that it is shown in.

    Returns:
        Where its pixels lie.
    """
    transform = scene.transform @ Affine.translation(col, row)
    if pixels != size:
        transform = transform @ Affine.scale(size / pixels)
    west, south, east, north = array_bounds(pixels, pixels, transform)
    return Georeference(scene.crs, transform, (west, south, east, north))


def encode_crs(wkts: Iterable[str]) -> Tensor:
    """Write coordinate reference systems as tensors, which any loader can stack.

    Args:
        wkts: Coordinate reference systems, as WKT.

    Returns:
        The same as UTF-8, (n, L) uint8, zeros after the end.
    """
    texts = [torch.tensor(list(wkt.encode()), dtype=torch.uint8) for wkt in wkts]
    return pad_sequence(texts, batch_first=True)


def decode_crs(text: Tensor) -> CRS:
    """Read the coordinate reference system that a sample carries as ``crs``.

    Args:
        text: Its WKT as UTF-8, (L,) uint8, zeros after the end.

    Returns:
        The coordinate reference system.

    Raises:
        ValueError: If *text* is that of a whole batch.
    """
    if text.ndim != 1:
        raise ValueError(
            f'crs has the shape {tuple(text.shape)}: give that of one patch, (L,), '
            "batch['crs'][0] for example"
        )
    return CRS.from_wkt(bytes(text.tolist()).rstrip(b'\0').decode())
