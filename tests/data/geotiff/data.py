# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""GeoTIFF scenes with smooth content, as a folder of a user's own would hold."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine

#: Highest value that is written, by data type.
RANGES = {'uint8': 255, 'uint16': 10_000, 'int16': 10_000, 'float32': 10_000}

#: Top left corner of the scenes, in EPSG:32621 (metres).
ORIGIN = (700_000.0, 7_200_000.0)


def texture(bands: int, height: int, width: int, seed: int) -> NDArray[np.float64]:
    """Smooth random fields in 0 to 1 that the bands share in different mixtures.

    Args:
        bands: Number of bands.
        height: Rows.
        width: Columns.
        seed: Seed of the content.

    Returns:
        The bands (bands, height, width).
    """
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width] / 32
    waves = [
        np.sin(2 * np.pi * (u * rows + v * cols) + phase)
        for u, v, phase in rng.normal(size=(8, 3))
    ]
    image = np.einsum('bw,whc->bhc', rng.normal(size=(bands, len(waves))), waves)
    image += 0.1 * rng.normal(size=image.shape)
    low, high = image.min(axis=(1, 2)), image.max(axis=(1, 2))
    return (image - low[:, None, None]) / (high - low)[:, None, None]


def write_scene(
    path: Path,
    *,
    bands: int = 3,
    size: int | tuple[int, int] = 64,
    crs: str | None = 'EPSG:32621',
    res: float = 30.0,
    origin: tuple[float, float] = ORIGIN,
    transform: Affine | None = None,
    dtype: str = 'uint16',
    nodata: float | None = None,
    fill: float = 0.0,
    descriptions: Sequence[str] | None = None,
    seed: int = 0,
) -> Path:
    """Write one scene.

    Args:
        path: File to write.
        bands: Number of bands.
        size: Height and width in pixels, or (height, width).
        crs: Coordinate reference system.
        res: Size of a pixel in units of *crs*.
        origin: x and y of the top left corner.
        transform: Geotransform, in place of *res* and *origin*.
        dtype: Data type of the pixels.
        nodata: Value of fill pixels, declared by a tag.
        fill: Share of the rows, from the top, that is fill (of value *nodata* or 0).
        descriptions: Names of the bands.
        seed: Seed of the content.

    Returns:
        *path*.
    """
    height, width = (size, size) if isinstance(size, int) else size
    image = 1 + texture(bands, height, width, seed) * (RANGES[dtype] - 1)
    image[:, : round(fill * height)] = 0 if nodata is None else nodata
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        'w',
        driver='GTiff',
        count=bands,
        height=height,
        width=width,
        dtype=dtype,
        crs=crs,
        transform=transform or Affine(res, 0, origin[0], 0, -res, origin[1]),
        nodata=nodata,
    ) as file:
        file.write(image.astype(dtype))
        if descriptions is not None:
            file.descriptions = tuple(descriptions)
    return path


def generate(root: Path, number: int = 3, seed: int = 0, **scene: object) -> list[Path]:
    """Write scenes side by side, with gaps between them.

    Args:
        root: Folder to write to.
        number: How many.
        seed: Seed of the first, counting up.
        **scene: What they have in common: arguments of :func:`write_scene`.

    Returns:
        The files.
    """
    x, y = ORIGIN
    return [
        write_scene(
            root / f'scene_{i}.tif',
            origin=(x + i * 20_000, y),
            seed=seed + i,
            **scene,  # type: ignore[arg-type]
        )
        for i in range(number)
    ]
