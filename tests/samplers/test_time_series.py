# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Many dates of one place are looked at once, and nothing else changes by it."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.geotiff.data import ORIGIN, write_scene
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.datasets import Scenes, split_by_area
from torchgeo_cmid.samplers import RandomScenePatchSampler
from torchgeo_cmid.samplers.ground import Allowed
from torchgeo_cmid.samplers.patches import everywhere


def series(folder: Path, number: int, shift: float, **arguments: Any) -> Path:
    """Write dates of one place, each shifted a little further."""
    x, y = ORIGIN
    path = write_scene(folder / '0000.tif', bands=1, dtype='uint8', **arguments)
    for i in range(1, number):
        other = folder / f'{i:04d}.tif'
        if shift:
            write_scene(
                other, bands=1, dtype='uint8', origin=(x + i * shift, y), **arguments
            )
        else:
            other.write_bytes(path.read_bytes())
    return folder


def opaque(allowed: Allowed) -> Allowed:
    """The same, without a hint that it depends on the ground alone."""
    return lambda *arguments: allowed(*arguments)


@pytest.mark.parametrize('shift', [0, 7.0])
def test_is_set_up_in_seconds(shift: float, tmp_path: Path) -> None:
    """600 scenes took more than a minute, and an epoch of 64 patches nine seconds."""
    series(tmp_path, 600, shift, size=256)
    module = RasterFolderDataModule(
        str(tmp_path), patch_size=64, length=64, batch_size=16, mean=[0.0], std=[1.0]
    )
    start = time.process_time()
    module.setup('fit')
    assert len(list(module.train_sampler)) == 64
    assert time.process_time() - start < 45


@pytest.mark.parametrize('shift', [0, 30.0, 7.0])
@pytest.mark.parametrize(
    'arguments', [{}, {'min_valid': 0.6, 'nodata': 0}, {'roi': True}]
)
@pytest.mark.parametrize('split', [False, True])
def test_as_one_by_one(
    split: bool, arguments: dict[str, Any], shift: float, tmp_path: Path
) -> None:
    series(tmp_path, 5, shift, size=64)
    x, y = ORIGIN
    for i, fill in enumerate((0.2, 0.5)):  # of the same place, with fill
        write_scene(tmp_path / f'f{i}.tif', bands=1, dtype='uint8', fill=fill)
    write_scene(tmp_path / 'z.tif', bands=1, dtype='uint8', origin=(x + 900, y - 600))
    write_scene(
        *(tmp_path / 'y.tif',),
        bands=1,
        dtype='uint8',
        crs='EPSG:32622',
        origin=(417_000, 7_199_000),
    )
    if 'roi' in arguments:
        west, south, east, north = Scenes(tmp_path / '0000.tif').index.total_bounds
        arguments = {'roi': [west, south, (west + east) / 2, north]}
    scenes = Scenes(tmp_path, **arguments)
    allowed = split_by_area(scenes, 16, 0.3).train if split else everywhere
    once = RandomScenePatchSampler(scenes, size=16, length=200, allowed=allowed)
    each = RandomScenePatchSampler(scenes, size=16, length=200, allowed=opaque(allowed))
    assert len(once.ground.overlap.members) < len(each.ground.overlap.members) or shift
    for name in ('drawn', 'largest', 'uneven'):
        np.testing.assert_array_equal(
            getattr(once.ground, name), getattr(each.ground, name)
        )
    np.testing.assert_array_equal(
        once.ground.overlap.overlaps, each.ground.overlap.overlaps
    )
    for a, b in zip(once.parts, each.parts, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(once.weights, each.weights)
    assert once.parts.shown.max() > 1
    assert list(once) == list(each)
