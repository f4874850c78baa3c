# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Rasters that GDAL knows by a name that is no path."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from tests.data.geotiff.data import write_scene
from torchgeo_cmid.datasets import Patch, Scenes
from torchgeo_cmid.rasters.files import container
from torchgeo_cmid.rasters.stamp import take_stamp

WHOLE = Patch(0, 0, 0, 64)


def pages(path: Path) -> np.ndarray:
    """Write two rasters into one file, and give the second."""
    with rasterio.open(write_scene(path, seed=1)) as file:
        image, profile = file.read(), file.profile
    write_scene(path)
    with rasterio.open(path, 'w', **profile, APPEND_SUBDATASET=True) as file:
        file.write(image)
    return image


def zarr(folder: Path) -> np.ndarray:
    """Write a folder that is a raster."""
    with rasterio.open(write_scene(folder.with_suffix('.tif'), bands=1)) as file:
        image, profile = file.read(), file.profile
    folder.with_suffix('.tif').unlink()
    for name in ('tiled', 'interleave', 'nodata', 'blockxsize', 'blockysize'):
        profile.pop(name, None)
    try:
        with rasterio.open(folder, 'w', **profile | {'driver': 'Zarr'}) as file:
            file.write(image)
    except rasterio.errors.RasterioError as error:
        pytest.skip(f"no Zarr in this wheel of rasterio's: {error}")
    return image


def netcdf(path: Path) -> np.ndarray:
    """Write two variables, and give the second."""
    with rasterio.Env() as env:
        if 'netCDF' not in env.drivers():
            pytest.skip("no netCDF in this wheel of rasterio's")
    source = write_scene(path.with_suffix('.tif'), bands=2)
    rasterio.shutil.copy(source, path, driver='netCDF')
    with rasterio.open(source) as file:
        image = file.read([2])
    source.unlink()
    return image


CASES: list[tuple[Any, str, str]] = [
    (pages, 'a.tif', 'GTIFF_DIR:2:{}'),
    (zarr, 'x.zarr', '{}'),
    (zarr, 'x.zarr', 'ZARR:"{}"'),
    (netcdf, 'm.nc', 'netcdf:"{}":Band2'),
    (netcdf, 'm.nc', 'NETCDF:{}:Band2'),
]


class TestNames:
    @pytest.mark.parametrize('relative', [False, True])
    @pytest.mark.parametrize(('write', 'name', 'form'), CASES)
    def test_are_read(
        self,
        write: Any,
        name: str,
        form: str,
        relative: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        image = write(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        path = form.format(name if relative else tmp_path / name)
        for _ in range(2):
            dataset = Scenes(path, cache=str(tmp_path / 'cache'))
            assert len(dataset) == 1
            np.testing.assert_array_equal(dataset[WHOLE]['image'], image)
            assert dataset[WHOLE]['valid'].all()

    @pytest.mark.parametrize(
        'form', ['netcdf:"{}":Band2', 'GTIFF_DIR:2:{}', 'HDF5:"{}"://x']
    )
    def test_nothing_there(self, form: str, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r'there is no .*m\.nc'):
            Scenes(form.format(tmp_path / 'm.nc'))

    @pytest.mark.parametrize(
        'form', ['netcdf:"{}":Band2', 'GTIFF_DIR:2:{}', 'HDF5:{}://x']
    )
    def test_pipe(self, form: str, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / 'm.nc')
        with pytest.raises(OSError, match='pipe, socket or device'):
            Scenes(form.format(tmp_path / 'm.nc'))

    def test_what_is_offered_is_taken(self, tmp_path: Path) -> None:
        """The error of a container names what is in it, and any of that opens."""
        image = netcdf(tmp_path / 'm.nc')
        with pytest.raises(ValueError, match='name one of them') as error:
            Scenes(tmp_path / 'm.nc')
        name = f'netcdf:"{tmp_path}/m.nc":Band2'
        assert name in str(error.value)
        np.testing.assert_array_equal(Scenes(name)[WHOLE]['image'], image)

    @pytest.mark.parametrize(
        ('name', 'inside'),
        [
            ('netcdf:"/a b/m.nc":Band1', '/a b/m.nc'),
            ('NETCDF:m.nc:Band1', 'm.nc'),
            ('HDF5:"/h.h5"://x/y', '/h.h5'),
            ('HDF5:h.h5://x', 'h.h5'),
            ('ZARR:"/x.zarr":/y', '/x.zarr'),
            ('ZARR:x.zarr', 'x.zarr'),
            ('GTIFF_DIR:2:/a:b.tif', '/a:b.tif'),
            ('GTIFF_DIR:off:1234:a.tif', 'a.tif'),
            ('/data/netcdf:x.tif', '/data/netcdf:x.tif'),
        ],
    )
    def test_file_of_a_name(self, name: str, inside: str) -> None:
        assert container(name) == inside

    def test_changes_are_seen(self, tmp_path: Path) -> None:
        path = tmp_path / 'a.tif'
        path.write_bytes(b'1')
        before = take_stamp(f'GTIFF_DIR:2:{path}')
        assert before is not None
        path.write_bytes(b'12')
        assert take_stamp(f'GTIFF_DIR:2:{path}') != before
