# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""HDF5 and netCDF-4 files lead to no other files."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import rasterio.shutil

from tests.data.geotiff.data import write_scene
from tests.data.hostile.data import vrt
from torchgeo_cmid.datasets import Patch, Scenes
from torchgeo_cmid.rasters import hdf5

WHOLE = Patch(0, 0, 0, 64)


def netcdf(path: Path) -> np.ndarray:
    """Write a scene as netCDF-4, and another file that nobody names."""
    scene = write_scene(path.with_suffix('.tif'), bands=1)
    rasterio.shutil.copy(scene, path, driver='netCDF', FORMAT='NC4')
    with rasterio.open(scene) as file:
        image = file.read(1)
    scene.unlink()
    with h5py.File(path.with_name('other.h5'), 'w') as file:
        file['x'] = file['g/x'] = np.full((64, 64), 7, np.uint16)
    np.full((64, 64), 7, np.uint16).tofile(path.with_name('raw.bin'))
    return image


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((64, 64), 'u2')
    layout[:] = h5py.VirtualSource('other.h5', 'x', (64, 64))
    file.create_virtual_dataset('v', layout)


def stored_outside(file: h5py.File) -> None:
    raw = str(Path(file.filename).with_name('raw.bin'))
    file.create_dataset('r', shape=(64, 64), dtype='u2', external=[(raw, 0, 8192)])


def replaced(file: h5py.File) -> None:
    del file['Band1']
    file['Band1'] = h5py.ExternalLink('other.h5', '/x')


def through_a_soft_link(file: h5py.File) -> None:
    file['in/e'] = h5py.ExternalLink('other.h5', '/g')
    file['a'] = h5py.SoftLink('/in/e/x')


OUT: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    'dataset': (replaced, "'/Band1' is an external link.* 'other.h5', '/x'"),
    'group': (
        lambda file: file.__setitem__('g', h5py.ExternalLink('other.h5', '/g')),
        "'/g' is an external link.* 'other.h5', '/g'",
    ),
    'nested': (
        lambda file: file.__setitem__('p/q/r', h5py.ExternalLink('other.h5', '/x')),
        "'/p/q/r' is an external link.* 'other.h5'",
    ),
    'server': (
        lambda file: file.__setitem__(
            'g', h5py.ExternalLink('/vsicurl/http://127.0.0.1:1/o.h5', '/g')
        ),
        '127.0.0.1',
    ),
    'soft': (through_a_soft_link, "'/in/e' is an external link"),
    'storage': (stored_outside, r"'/r' are stored outside.*raw\.bin"),
    'virtual': (virtual, "'/v' is a virtual data set.* 'other.h5', '"),
}


@pytest.mark.parametrize('kind', OUT)
@pytest.mark.parametrize(
    'name', ['{}', 'netcdf:"{}":Band1', 'HDF5:"{}"://Band1', 'source.vrt']
)
def test_none_leads_out(kind: str, name: str, tmp_path: Path) -> None:
    write, message = OUT[kind]
    path = tmp_path / 'a.nc'
    netcdf(path)
    with h5py.File(path, 'r+') as file:
        write(file)
    raster = name.format(path)
    if name == 'source.vrt':
        vrt('a.nc')(tmp_path / name)
        raster = str(tmp_path / name)
    with pytest.raises(OSError, match=f'{re.escape(str(path))}: .*{message}'):
        Scenes(raster)


def test_links_are_followed_where_that_is_asked_for(tmp_path: Path) -> None:
    netcdf(tmp_path / 'a.nc')
    with h5py.File(tmp_path / 'a.nc', 'r+') as file:
        virtual(file)
    path = f'netcdf:"{tmp_path}/a.nc":Band1'
    assert Scenes(path, drivers=['netCDF'])[WHOLE]['image'].shape == (1, 64, 64)


def test_what_stays_in_the_file_is_read(tmp_path: Path) -> None:
    """Circles of links, soft links to nothing, virtual data sets of the file itself."""
    image = netcdf(tmp_path / 'a.nc')
    with h5py.File(tmp_path / 'a.nc', 'r+') as file:
        file['g/up'] = file['/']
        file['g/down'] = file['g']
        file['s'] = h5py.SoftLink('/s')
        file['n'] = h5py.SoftLink('/nowhere')
        layout = h5py.VirtualLayout((64, 64), 'u2')
        layout[:] = h5py.VirtualSource(file['Band1'])
        file.create_virtual_dataset('v', layout)
    hdf5.check_links(str(tmp_path / 'a.nc'))
    netcdf(tmp_path / 'b.nc')
    for path in (tmp_path / 'b.nc', f'netcdf:"{tmp_path}/b.nc":Band1'):
        np.testing.assert_array_equal(Scenes(path)[WHOLE]['image'][0].numpy(), image)


def test_number_of_links_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netcdf(tmp_path / 'a.nc')
    monkeypatch.setattr(hdf5, 'MAX_LINKS', 2)
    with pytest.raises(OSError, match=r'a\.nc: it holds more than 2 links'):
        Scenes(tmp_path / 'a.nc')


def test_pipe_that_is_named_is_not_opened(tmp_path: Path) -> None:
    """Nor where the size of a virtual data set depends on what it names."""
    os.mkfifo(tmp_path / 'pipe')
    with h5py.File(tmp_path / 'a.h5', 'w') as file:
        size = h5py.h5s.UNLIMITED
        space = h5py.h5s.create_simple((0, 64), (size, 64))
        space.select_hyperslab((0, 0), (size, 1), block=(1, 64))
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_virtual(space, bytes(tmp_path / 'pipe'), b'/x', space)
        h5py.h5d.create(file.id, b'x', h5py.h5t.STD_U16LE, space, created)
    with pytest.raises(OSError, match=r'a\.h5: .*virtual data set.*pipe'):
        hdf5.check_links(str(tmp_path / 'a.h5'))


def test_damaged(tmp_path: Path) -> None:
    netcdf(tmp_path / 'a.nc')
    content = (tmp_path / 'a.nc').read_bytes()
    (tmp_path / 'a.nc').write_bytes(content[:200])
    with pytest.raises(OSError, match=r'a\.nc: the HDF5 file is damaged'):
        Scenes(tmp_path / 'a.nc')


def test_in_an_archive(tmp_path: Path) -> None:
    """What cannot be looked at is opened only where its driver is named."""
    from torchgeo_cmid.rasters.opening import allowed_drivers

    remote = '/vsizip/a.zip/a.h5'
    assert not set(hdf5.DRIVERS) & set(allowed_drivers(remote))
    assert 'HDF5' in allowed_drivers(remote, ('HDF5',))
    assert set(hdf5.DRIVERS) <= set(allowed_drivers('a.h5'))
