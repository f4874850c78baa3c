# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes of one place on several dates, whose pixels say where they are."""

from pathlib import Path

import numpy as np
import rasterio
from pyproj import Transformer
from rasterio.transform import Affine

from tests.data.geotiff.data import ORIGIN

#: The CRS in which pixels say where they are.
CRS = 'EPSG:32621'


def write_places(
    path: Path,
    *,
    crs: str = CRS,
    res: float = 10.0,
    size: tuple[int, int] = (300, 300),
    shift: tuple[float, float] = (0.0, 0.0),
    fill: float = 0.0,
) -> Path:
    """Write a scene of two bands: metres east and metres south of ``ORIGIN``.

    Args:
        path: File to write.
        crs: Coordinate reference system of the grid.
        res: Size of a pixel in metres.
        size: Height and width in pixels.
        shift: Metres east and south of ``ORIGIN`` at the top left corner.
        fill: Share of the rows, from the top, that is fill: -9999, declared by a tag.

    Returns:
        *path*.
    """
    there = Transformer.from_crs(CRS, crs, always_xy=True)
    x, y = there.transform(ORIGIN[0] + shift[0], ORIGIN[1] - shift[1])
    transform = Affine(res, 0, x, 0, -res, y)
    rows, cols = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = transform @ (cols, rows)
    east, north = there.transform(x, y, direction='INVERSE')
    image = np.stack([east - ORIGIN[0], ORIGIN[1] - north])
    image[:, : round(fill * size[0])] = -9999
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=2,
        height=size[0],
        width=size[1],
        dtype='float32',
        crs=crs,
        transform=transform,
        nodata=-9999,
    ) as file:
        file.write(image.astype(np.float32))
    return path


def generate(root: Path) -> None:
    """Write three dates of one place, and a place of one date.

    Args:
        root: Folder to write to.
    """
    write_places(root / 'a_20240105.tif')
    write_places(root / 'b_20240620.tif', res=30, size=(120, 140), shift=(-300, -200))
    write_places(
        root / 'c_20250105.tif', crs='EPSG:32622', size=(280, 260), shift=(450, 300)
    )
    write_places(root / 'd_20240105.tif', size=(200, 200), shift=(20_000, 0))
