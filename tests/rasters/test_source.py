# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands of other types, NaN and tables of colours become pixels and fill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp

from tests.data.geotiff.data import write_scene
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.datasets import Patch, Scenes

WHOLE = Patch(0, 0, 0, 64)

#: GDAL's names of data types.
GDAL = {
    'uint8': 'Byte',
    'int16': 'Int16',
    'uint16': 'UInt16',
    'int32': 'Int32',
    'float32': 'Float32',
    'float64': 'Float64',
    'complex64': 'CFloat32',
    'complex_int16': 'CInt16',
}


@pytest.fixture(params=[False, True], ids=['plain', 'cached'])
def arguments(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    return {'cache': str(tmp_path / 'cache')} if request.param else {}


def write_band(path: Path, dtype: str, nan: bool = False, seed: int = 0) -> np.ndarray:
    """Write a file of one band; its first rows are NaN if asked for."""
    write_scene(path, bands=1, seed=seed, dtype='float32')
    with rasterio.open(path) as file:
        image, profile = np.rint(file.read() / 100), file.profile
    if nan:
        image[:, :16] = np.nan
    profile.update(dtype=dtype)
    with rasterio.open(path, 'w', **profile) as file:
        file.write(image.astype(dtype))
    return image[0].astype(np.float32)


def stack(folder: Path, *dtypes: str, nan: bool = True) -> tuple[Path, np.ndarray]:
    """A file whose bands differ in type; those of floats have NaN in the first rows."""
    bands, images = '', []
    for i, dtype in enumerate(dtypes, 1):
        kind = 'float32' if dtype.startswith('c') else dtype
        has_nan = nan and kind.startswith('float')
        images.append(write_band(folder / f'{i}.tif', kind, has_nan, seed=i))
        bands += (
            f'<VRTRasterBand dataType="{GDAL[dtype]}" band="{i}"><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">{i}.tif</SourceFilename>'
            '<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>'
        )
    path = folder / 'stack.vrt'
    path.write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32621</SRS>'
        f'<GeoTransform>700000, 30, 0, 7200000, 0, -30</GeoTransform>{bands}'
        '</VRTDataset>'
    )
    return path, np.stack(images)


class TestTypes:
    @pytest.mark.parametrize('min_valid', [0, 0.5])
    @pytest.mark.parametrize(
        'dtypes',
        [
            ('uint16', 'float32'),
            ('float32', 'uint16'),
            ('uint8', 'int32', 'float64'),
            ('float64', 'uint8', 'int16'),
            ('uint8', 'int16', 'uint16'),
        ],
    )
    def test_bands_of_one_file(
        self, dtypes: tuple[str, ...], min_valid: float, tmp_path: Path
    ) -> None:
        path, image = stack(tmp_path, *dtypes)
        for bands in [None, *([i] for i in range(1, len(dtypes) + 1)), [2, 1]]:
            wanted = image if bands is None else image[np.array(bands) - 1]
            dataset = Scenes(path, bands, min_valid=min_valid)
            sample = dataset[WHOLE]
            valid = np.isfinite(wanted).all(axis=0)
            np.testing.assert_array_equal(sample['valid'][0], valid)
            np.testing.assert_array_equal(sample['image'][:, valid], wanted[:, valid])
            assert sample['image'].isfinite().all()
            if min_valid and not valid.all():
                rows = np.array([0, 48])
                np.testing.assert_array_equal(
                    dataset.scenes[0].eligible(rows, rows, 16), [False, True]
                )

    def test_statistics(self, tmp_path: Path) -> None:
        path, image = stack(tmp_path, 'uint16', 'float32')
        module = RasterFolderDataModule(
            str(path), [2], patch_size=64, length=8, batch_size=8, val_split=0.0
        )
        module.setup('fit')
        (batch,) = module.train_dataloader()
        assert not (batch['image'].isnan() & batch['valid']).any()
        np.testing.assert_allclose(module.mean[0], np.nanmean(image[1]), rtol=1e-5)

    @pytest.mark.parametrize('dtype', ['complex64', 'complex_int16'])
    def test_no_real_numbers(self, dtype: str, tmp_path: Path) -> None:
        path, image = stack(tmp_path, 'uint8', dtype, nan=False)
        with pytest.raises(
            ValueError, match=rf'stack\.vrt: pixels of band 2 are {dtype}'
        ):
            Scenes(path)
        np.testing.assert_array_equal(Scenes(path, [1])[WHOLE]['image'], image[:1])


class TestNaN:
    @pytest.mark.parametrize('nodata', [None, float('nan')])
    @pytest.mark.parametrize('dtype', ['float32', 'float64'])
    def test_is_no_data(
        self,
        dtype: str,
        nodata: float | None,
        arguments: dict[str, Any],
        tmp_path: Path,
    ) -> None:
        image = write_band(tmp_path / 'a.tif', dtype, nan=True)
        for _ in range(2):
            dataset = Scenes(tmp_path / 'a.tif', nodata=nodata, **arguments)
            sample = dataset[WHOLE]
            np.testing.assert_array_equal(sample['valid'][0], np.isfinite(image))
            assert sample['image'].isfinite().all()
        dataset = Scenes(tmp_path / 'a.tif', nodata=nodata, min_valid=1, **arguments)
        starts = np.array([0, 15, 16])
        eligible = dataset.scenes[0].eligible(starts, starts, 16)
        np.testing.assert_array_equal(eligible, [False, False, True])

    def test_unless_a_number_is(
        self, arguments: dict[str, Any], tmp_path: Path
    ) -> None:
        write_band(tmp_path / 'a.tif', 'float32', nan=True)
        dataset = Scenes(tmp_path / 'a.tif', nodata=-9999, **arguments)
        with pytest.raises(ValueError, match=r'a\.tif, rows.*NaN.*nodata=-9999 out'):
            dataset[WHOLE]

    @pytest.mark.parametrize('value', [np.inf, -np.inf])
    def test_infinity_is_an_error(
        self, value: float, arguments: dict[str, Any], tmp_path: Path
    ) -> None:
        write_band(tmp_path / 'a.tif', 'float32', nan=True)
        with rasterio.open(tmp_path / 'a.tif', 'r+') as file:
            image = file.read()
            image[0, 30, 30] = value
            file.write(image)
        dataset = Scenes(tmp_path / 'a.tif', **arguments)
        with pytest.raises(ValueError, match=r'a\.tif, rows.*NaN or infinite'):
            dataset[WHOLE]


def paletted(
    path: Path, nodata: int | None = None, clear: int | None = None, **profile: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Write numbers of colours, and give the colours and where they are seen."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 256, (256, 4))
    table[:, 3] = 255
    if clear is not None:
        table[clear, 3] = 0
    numbers = rng.integers(0, 256, (64, 64)).astype(np.uint8)
    arguments: dict[str, Any] = {
        'driver': 'GTiff',
        'height': 64,
        'width': 64,
        'count': 1,
        'dtype': 'uint8',
        'crs': 'EPSG:32621',
        'transform': rasterio.Affine(30, 0, 7e5, 0, -30, 7.2e6),
        'nodata': nodata,
    }
    path.parent.mkdir(exist_ok=True)
    with rasterio.open(path, 'w', **arguments | profile) as file:
        file.write(numbers, 1)
        file.write_colormap(1, {i: tuple(map(int, c)) for i, c in enumerate(table)})
    valid = np.ones((64, 64), dtype=bool)
    if nodata is not None:
        valid &= numbers != nodata
    if clear is not None:
        valid &= numbers != clear
    return table[numbers][..., :3].transpose(2, 0, 1).astype(np.float32), valid


class TestColourTables:
    @pytest.mark.parametrize('bands', [None, [1, 2, 3], [3, 1], ['green']])
    def test_become_colours(
        self, bands: list[Any] | None, arguments: dict[str, Any], tmp_path: Path
    ) -> None:
        image, valid = paletted(tmp_path / 'a.tif', nodata=7)
        wanted = [{'green': 2}.get(b, b) - 1 for b in bands or (1, 2, 3)]
        for _ in range(2):
            dataset = Scenes(tmp_path / 'a.tif', bands, **arguments)
            sample = dataset[WHOLE]
            np.testing.assert_array_equal(sample['valid'][0], valid)
            assert not valid.all()
            np.testing.assert_array_equal(
                sample['image'][:, valid], image[wanted][:, valid]
            )
            assert dataset.unit == 255
            assert len(dataset.bands) == len(wanted)

    def test_alpha_is_a_mask(self, arguments: dict[str, Any], tmp_path: Path) -> None:
        image, valid = paletted(tmp_path / 'b.tif', clear=9)
        path = tmp_path / 'a.vrt'  # a TIFF's own table has no alpha
        rasterio.shutil.copy(tmp_path / 'b.tif', path, driver='VRT')
        entry = path.read_text().split('<Entry')[10]
        text = path.read_text().replace(entry, entry.replace('c4="255"', 'c4="0"'))
        path.write_text(text)
        dataset = Scenes(path, min_valid=0.99, **arguments)
        sample = dataset[WHOLE]
        np.testing.assert_array_equal(sample['valid'][0], valid)
        np.testing.assert_array_equal(sample['image'][:, valid], image[:, valid])
        assert dataset.scenes[0].coverage is not None
        share = dataset.scenes[0].coverage.valid(np.array([0]), np.array([0]), 64)
        assert share == valid.mean()

    def test_beside_files_of_colours(
        self, arguments: dict[str, Any], tmp_path: Path
    ) -> None:
        image, _ = paletted(tmp_path / 'in' / 'a.tif')
        write_scene(tmp_path / 'in' / 'b.tif', bands=3, dtype='uint8')
        for _ in range(2):
            dataset = Scenes(tmp_path / 'in', **arguments)
            np.testing.assert_array_equal(dataset[WHOLE]['image'], image)
            assert dataset[Patch(1, 0, 0, 64)]['image'].shape == (3, 64, 64)

    def test_all_bands_names_the_colours(self, tmp_path: Path) -> None:
        image, _ = paletted(tmp_path / 'a.tif')
        dataset = Scenes(tmp_path / 'a.tif', ['B', 'R'], all_bands=['R', 'G', 'B'])
        np.testing.assert_array_equal(dataset[WHOLE]['image'], image[[2, 0]])
        with pytest.raises(ValueError, match='has 3 bands, but all_bands names 1'):
            Scenes(tmp_path / 'a.tif', all_bands=['x'])
        with pytest.raises(ValueError, match=r'no band 4; the file has'):
            Scenes(tmp_path / 'a.tif', [4])

    def test_one_of_a_scene_of_bands(self, tmp_path: Path) -> None:
        paletted(tmp_path / 'S_B1.tif')
        with pytest.raises(ValueError, match=r'S_B1\.tif: holds 3 bands'):
            Scenes(tmp_path, filename_regex=r'S_(?P<band>B\d)\.tif')

    def test_beside_other_bands(self, tmp_path: Path) -> None:
        path, _ = stack(tmp_path, 'uint8', 'uint8', nan=False)
        table = '<ColorInterp>Palette</ColorInterp><ColorTable><Entry c1="1" c2="2" '
        table += 'c3="3" c4="255"/></ColorTable><SimpleSource>'
        path.write_text(path.read_text().replace('<SimpleSource>', table, 1))
        with rasterio.open(path) as file:
            assert file.colorinterp[0] == ColorInterp.palette
        with pytest.raises(
            ValueError, match=r'band 1 .*gdal_translate -b 1 -expand rgb'
        ):
            Scenes(path)
        assert Scenes(path, [2])[WHOLE]['valid'].all()

    def test_number_without_a_colour(self, tmp_path: Path) -> None:
        path, _ = stack(tmp_path, 'uint8', nan=False)
        table = '<ColorInterp>Palette</ColorInterp><ColorTable><Entry c1="1" c2="2" '
        table += 'c3="3" c4="255"/></ColorTable><SimpleSource>'
        path.write_text(path.read_text().replace('<SimpleSource>', table, 1))
        with pytest.raises(ValueError, match=r'stack\.vrt, rows.*table has only 1'):
            Scenes(path)[WHOLE]


class TestPlaceByPoints:
    def test_says_how_to_lay_it_on_a_grid(self, tmp_path: Path) -> None:
        points = [
            rasterio.control.GroundControlPoint(
                row, col, 10 + col / 5e3, 45 - row / 5e3
            )
            for row in (0, 64)
            for col in (0, 64)
        ]
        path = write_scene(tmp_path / 'a.tif')
        with rasterio.open(path) as file:
            image, profile = file.read(), file.profile
        del profile['transform'], profile['crs']
        with rasterio.open(path, 'w', **profile, gcps=points, crs='EPSG:4326') as file:
            file.write(image)
        message = r'a\.tif: no geotransform, only 4 ground control.*gdalwarp -tps'
        with pytest.raises(ValueError, match=message):
            Scenes(path)
        with rasterio.open(path, 'w', **profile) as file:
            file.write(image)
            file.rpcs = rasterio.rpc.RPC(
                height_off=0.0,
                height_scale=1.0,
                lat_off=45.0,
                lat_scale=1.0,
                line_den_coeff=[1.0] + [0.0] * 19,
                line_num_coeff=[0.0, 1.0] + [0.0] * 18,
                line_off=32.0,
                line_scale=32.0,
                long_off=10.0,
                long_scale=1.0,
                samp_den_coeff=[1.0] + [0.0] * 19,
                samp_num_coeff=[0.0, 0.0, 1.0] + [0.0] * 17,
                samp_off=32.0,
                samp_scale=32.0,
                err_bias=None,
                err_rand=None,
            )
        with pytest.raises(ValueError, match=r'a\.tif: .*\(RPC\).*gdalwarp -rpc'):
            Scenes(path)
