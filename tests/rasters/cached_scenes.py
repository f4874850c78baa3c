# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Scenes of every kind, to be read with and without the cache."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp

from tests.data.geotiff.data import ORIGIN, write_scene
from torchgeo_cmid.datasets import Patch, Scenes, Sensor

SIZE = 150
PATCH = 48
X, Y = ORIGIN
REGEX = r'S_1_(?P<band>B\d)\.tif'


def copy(path: Path, image: np.ndarray | None = None, **profile: Any) -> Path:
    """Write a file anew, with another profile."""
    with rasterio.open(path) as file:
        image = file.read() if image is None else image
        profile = file.profile | profile
    with rasterio.open(path, 'w', **profile) as file:
        file.write(image.astype(profile['dtype']))
    return path


def tiled(folder: Path) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE)
    copy(path, tiled=True, blockxsize=32, blockysize=32, compress='deflate')
    return {'paths': path}


def strips(folder: Path) -> dict[str, Any]:
    return {'paths': write_scene(folder / 'a.tif', size=(SIZE, 300)), 'bands': [3, 1]}


def large(folder: Path) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE, dtype='float32')
    return {'paths': copy(path, dtype='float64'), 'nodata': float('nan')}


def integers(folder: Path) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE)
    with rasterio.open(path) as file:
        image = file.read().astype(np.int32) + 2**26 + 1  # float32 holds no such
    return {'paths': copy(path, image, dtype='int32'), 'nodata': 2**26 + 1}


def tag(folder: Path) -> dict[str, Any]:
    path = write_scene(
        folder / 'a.tif', size=SIZE, dtype='float32', fill=0.4, nodata=float('nan')
    )
    return {'paths': path}


def value(folder: Path) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE, fill=0.4, nodata=0)
    return {'paths': path, 'nodata': 500}


def mask(folder: Path, internal: bool = True) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
        rasterio.open(path, 'r+') as file,
    ):
        file.write_mask(np.random.default_rng(0).random((SIZE, SIZE)) > 0.3)
    return {'paths': path}


def sidecar(folder: Path) -> dict[str, Any]:
    return mask(folder, internal=False)


def alpha(folder: Path) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE, bands=4, dtype='uint8')
    with rasterio.open(path, 'r+') as file:
        file.colorinterp = [ColorInterp.gray] * 3 + [ColorInterp.alpha]
        file.write(np.tri(SIZE, dtype='uint8') * 255, 4)
    return {'paths': path}


def region(folder: Path) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE)
    west, south, east, north = Scenes(path).index.total_bounds
    middle = [west + (east - west) / 4, south, east, north - (north - south) / 4]
    return {'paths': path, 'roi': middle}


def files(folder: Path) -> dict[str, Any]:
    """Bands of other resolution, extent, data type and CRS."""
    for i, kwargs in enumerate(
        [
            {'res': 10, 'size': 160},
            {'res': 20, 'size': 80, 'dtype': 'float32'},
            {'res': 60, 'size': 20, 'origin': (X + 485, Y - 125), 'dtype': 'uint8'},
            {'res': 2e-4, 'size': 400, 'origin': (-52.8, 64.9), 'crs': 'EPSG:4326'},
        ]
    ):
        write_scene(folder / f'S_1_B{i}.tif', bands=1, seed=i, **kwargs)  # type: ignore[arg-type]
    return {'paths': folder, 'filename_regex': REGEX, 'nodata': 0}


def grids(folder: Path) -> dict[str, Any]:
    """A band that is seen in two grids."""
    paths = str(files(folder)['paths'])
    bands: list[list[int | str]] = [['B0', 'B2'], ['B1', 'B2']]
    return {'sensors': [Sensor(paths, two, filename_regex=REGEX) for two in bands]}


def sensors(folder: Path) -> dict[str, Any]:
    """The same files with two lists of bands, and another file."""
    a = str(write_scene(folder / 'a.tif', size=SIZE, bands=4))
    b = str(write_scene(folder / 'b.tif', size=SIZE, bands=2, dtype='uint8'))
    return {
        'sensors': [
            Sensor(a, [1, 2], scale=1e-4, offset=-0.1),
            Sensor(a, [4, 1], nodata=700),
            Sensor(b),
        ]
    }


def jpeg2000(folder: Path) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE)
    with rasterio.open(path) as file:
        profile = file.profile | {'driver': 'JP2OpenJPEG', 'quality': 100}
        profile |= {'reversible': 'yes', 'blockxsize': 64, 'blockysize': 64}
        with rasterio.open(folder / 'a.jp2', 'w', **profile) as out:
            out.write(file.read())
    return {'paths': folder / 'a.jp2'}


def archive(folder: Path) -> dict[str, Any]:
    path = write_scene(folder / 'a.tif', size=SIZE)
    with zipfile.ZipFile(folder / 'a.zip', 'w') as file:
        file.write(path, 'a.tif')
    return {'paths': f'/vsizip/{folder}/a.zip/a.tif'}


Kind = Callable[[Path], dict[str, Any]]
KINDS: list[Kind] = [
    tiled,
    strips,
    large,
    integers,
    tag,
    value,
    mask,
    sidecar,
    alpha,
    region,
    files,
    grids,
    sensors,
    jpeg2000,
    archive,
]


def patches(dataset: Scenes, number: int = 12) -> list[Patch]:
    rng = np.random.default_rng(0)
    drawn = [Patch(0, 0, 0, PATCH)]
    for i, scene in enumerate(dataset.scenes):
        rows = rng.integers(scene.height - PATCH + 1, size=number)
        cols = rng.integers(scene.width - PATCH + 1, size=number)
        drawn += [
            Patch(i, int(row), int(col), PATCH)
            for row, col in zip(rows, cols, strict=True)
        ]
        drawn.append(Patch(i, scene.height - PATCH, scene.width - PATCH, PATCH))
    return drawn


def assert_same(dataset: Scenes, expected: Scenes) -> None:
    """Compare patches bit for bit."""
    addresses = patches(expected)
    samples = dataset.__getitems__(addresses)
    for address, sample, other in zip(
        addresses, samples, expected.__getitems__(addresses), strict=True
    ):
        assert sample.keys() == other.keys()
        for key in sample:
            a, b = sample[key].numpy(), other[key].numpy()
            assert a.tobytes() == b.tobytes(), (address, key)


def blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob('*/*.safetensors'))
