# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What is said of an archive when a run starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from torchgeo_cmid.datamodules import RasterFolderDataModule


def write(path: Path, west: float, pixel: float, size: int, crs: str) -> None:
    """Write two bands, the left half of them fill."""
    values = np.ones((2, size, size), 'uint8')
    values += np.random.default_rng(0).integers(0, 9, values.shape, 'uint8')
    values[:, :, : size // 2] = 0
    profile = {'count': 2, 'height': size, 'width': size, 'dtype': 'uint8', 'nodata': 0}
    transform = from_origin(west, 5e6, pixel, pixel)
    with rasterio.open(
        path, 'w', 'GTiff', crs=crs, transform=transform, **profile
    ) as f:
        f.write(values)


def make(**kwargs: Any) -> RasterFolderDataModule:
    return RasterFolderDataModule(patch_size=32, batch_size=2, **kwargs)


def said_of(
    caplog: pytest.LogCaptureFixture, datamodule: RasterFolderDataModule
) -> list[str]:
    with caplog.at_level('INFO'):
        datamodule.setup('fit')
        if datamodule.normalization is None:
            datamodule.train_dataloader()
    return [record.getMessage() for record in caplog.records]


def test_archive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / 'a_20200301.tif', 5e5, 10, 100, 'EPSG:32633')
    write(tmp_path / 'b_20210615.tif', 5.1e5, 20, 100, 'EPSG:32633')
    write(tmp_path / 'c_20210615.tif', 5e5, 10, 100, 'EPSG:32634')
    pattern = r'.*_(?P<date>\d{8}).*'
    datamodule = make(
        paths=str(tmp_path),
        filename_regex=pattern,
        cache=str(tmp_path / 'kept'),
        length=8,
        val_split=0.0,
    )
    said = said_of(caplog, datamodule)
    assert said[0].startswith('found: 3 scenes in 3 files, 2 bands (')
    assert said[0].endswith(f'cache {tmp_path / "kept"}')
    ground, dates, patches, valid = said[1:]
    # 1 + 4 + 1 km2; the projection preserves area but for what UTM does to it
    area = float(ground.removeprefix('ground: ').split()[0])
    assert area == pytest.approx(6, rel=5e-3)
    assert 'CRS EPSG:32633 (2), EPSG:32634 (1)' in ground
    assert 'pixels of 10 metre (2), 20 metre (1)' in ground
    assert dates == 'dates: 2 from 2020-03-01 to 2021-06-15'
    assert patches == (
        'patches: 8 an epoch of 32 x 32 pixels, 0 on 0% of the ground to validate'
    )
    patches = datamodule.train_sampler.draw(8, datamodule.split_seed)
    seen = [datamodule.scenes[patch]['valid'].float().mean() for patch in patches]
    assert 0 < np.mean(seen) < 1
    assert valid == f'valid: {np.mean(seen):.1%} of the pixels of 8 patches'


def test_least(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One scene, no date, no cache, statistics that are given."""
    write(tmp_path / 'a.tif', 5e5, 10, 100, 'EPSG:32633')
    datamodule = make(paths=str(tmp_path), mean=[1, 1], std=[1, 1], length=4)
    said = said_of(caplog, datamodule)
    assert len(said) == 4
    assert 'cache' not in said[0]
    assert 'CRS EPSG:32633, pixels of 10 metre' in said[1]
    assert said[2] == (
        'dates: not known, a filename_regex with a group date takes them from names'
    )


def test_number_of_patches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Regression: those of a last batch that is not whole were counted."""
    write(tmp_path / 'a.tif', 5e5, 10, 100, 'EPSG:32633')
    datamodule = make(paths=str(tmp_path), mean=[1, 1], std=[1, 1], length=7)
    said = said_of(caplog, datamodule)
    given = sum(len(batch['image']) for batch in datamodule.train_dataloader())
    assert given < 7
    assert said[3].startswith(f'patches: {given} an epoch')
