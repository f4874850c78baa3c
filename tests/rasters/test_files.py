# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Remote paths and archives go to GDAL."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.data.geotiff.data import write_scene
from torchgeo_cmid.datasets import Patch, Scenes

WHOLE = Patch(0, 0, 0, 64)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read().astype(np.float32)


class TestRemote:
    def test_archive_is_listed_and_read(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
            file.write(path, 'in/a.tif')
            file.writestr('in/readme.txt', 'no raster')
        for name in [f'/vsizip/{tmp_path}/a.zip', f'zip://{tmp_path}/a.zip!in/a.tif']:
            dataset = Scenes(name)
            assert len(dataset) == 1
            np.testing.assert_array_equal(dataset[WHOLE]['image'], read(path))

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r'/vsizip/.*no such file'):
            Scenes(f'/vsizip/{tmp_path}/b.zip')
        with pytest.raises(FileNotFoundError, match='standard input'):
            Scenes('/vsistdin/')

    @pytest.mark.parametrize(
        'path', ['s3://bucket/a.tif', '/vsis3/bucket/a.tif', 'https://x.org/a.tif']
    )
    def test_go_to_gdal_as_they_are(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = []

        def fail(name: str, driver: list[str]) -> None:
            opened.append(name)
            raise rasterio.errors.RasterioIOError('no network here')

        monkeypatch.setattr('torchgeo_cmid.rasters.opening._reader', fail)
        with pytest.raises(OSError, match=f'{path}: not a readable raster.*no network'):
            Scenes(path)
        assert opened == [path]
