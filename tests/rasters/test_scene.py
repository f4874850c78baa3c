# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands in one file or many, several sensors, fill in all its forms."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp

from tests.data.geotiff.data import ORIGIN, write_scene
from torchgeo_cmid.datasets import Patch, Scenes, Sensor

REGEX = r'S_\d+(_(?P<band>B\d+))?\.tif'
LANDSAT = Path(__file__).parents[1] / 'data' / 'landsat8'
WHOLE = Patch(0, 0, 0, 64)


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read().astype(np.float32)


def write_bands(folder: Path, scene: str, **bands: dict[str, Any]) -> dict[str, Path]:
    """Write one file per band."""
    return {
        name: write_scene(
            folder / f'{scene}_{name}.tif', bands=1, seed=i, **{'size': 64, **arguments}
        )
        for i, (name, arguments) in enumerate(bands.items())
    }


class TestOneFilePerBand:
    def test_bands_of_a_scene_are_stacked(self, tmp_path: Path) -> None:
        files = write_bands(tmp_path, 'S_1', B2={}, B3={}, B10={})
        dataset = Scenes(tmp_path, filename_regex=REGEX)
        assert dataset.bands == ('B2', 'B3', 'B10')
        image = dataset[WHOLE]['image'].numpy()
        expected = np.concatenate([read(path) for path in files.values()])
        np.testing.assert_array_equal(image, expected)
        image = Scenes(tmp_path, ['B10', 'B2'], filename_regex=REGEX)[WHOLE]['image']
        np.testing.assert_array_equal(image, expected[[2, 0]])

    def test_mixed_with_multi_band_files(self, tmp_path: Path) -> None:
        files = write_bands(tmp_path, 'S_1', B2={}, B3={}, B4={})
        many = write_scene(tmp_path / 'S_2.tif', bands=3, seed=7)
        write_scene(tmp_path / 'S_1_QA.tif', bands=1)  # the regex leaves it out
        dataset = Scenes(
            tmp_path, ['B4', 'B2'], filename_regex=REGEX, all_bands=['B2', 'B3', 'B4']
        )
        assert len(dataset) == 2
        assert dataset.bands == ('B4', 'B2')
        by_path = {scene.path: i for i, scene in enumerate(dataset.scenes)}
        first = dataset[Patch(by_path[str(files['B4'])], 0, 0, 64)]['image']
        np.testing.assert_array_equal(first[0], read(files['B4'])[0])
        np.testing.assert_array_equal(first[1], read(files['B2'])[0])
        second = dataset[Patch(by_path[str(many)], 0, 0, 64)]['image']
        np.testing.assert_array_equal(second, read(many)[[2, 0]])

    def test_coarser_bands_take_the_nearest_pixel(self, tmp_path: Path) -> None:
        files = write_bands(
            tmp_path, 'S_1', B1={'res': 60, 'size': 32}, B2={}, B3={'dtype': 'uint8'}
        )
        dataset = Scenes(tmp_path, filename_regex=REGEX)
        assert (dataset.scenes[0].height, dataset.scenes[0].transform.a) == (64, 30)
        sample = dataset[WHOLE]
        coarse = read(files['B1'])[0].repeat(2, axis=0).repeat(2, axis=1)
        np.testing.assert_array_equal(sample['image'][0], coarse)
        np.testing.assert_array_equal(sample['image'][1], read(files['B2'])[0])
        np.testing.assert_array_equal(sample['image'][2], read(files['B3'])[0])
        assert sample['valid'].all()

    @pytest.mark.parametrize('nodata', [None, 0])
    def test_fill_never_mixes_with_data(
        self, tmp_path: Path, nodata: float | None
    ) -> None:
        # a coarse band shifted by half the scene: beyond its end there is no data
        x, y = ORIGIN
        write_bands(
            tmp_path,
            'S_1',
            B1={
                'res': 60,
                'size': 32,
                'origin': (x + 960, y),
                'fill': 0.25,
                'nodata': nodata,
            },
            B2={},
        )
        dataset = Scenes(tmp_path, nodata=0, filename_regex=REGEX)
        sample = dataset[WHOLE]
        expected = np.zeros((64, 64), dtype=bool)
        expected[16:, 32:] = True
        np.testing.assert_array_equal(sample['valid'][0], expected)
        band = read(tmp_path / 'S_1_B1.tif')[0, 8:, :16]
        np.testing.assert_array_equal(
            sample['image'][0, 16:, 32:], band.repeat(2, axis=0).repeat(2, axis=1)
        )

    def test_bands_in_another_crs(self, tmp_path: Path) -> None:
        write_bands(
            tmp_path,
            'S_1',
            B1={},
            B2={
                'crs': 'EPSG:4326',
                'res': 0.0005,
                'origin': (-52.8, 64.9),
                'size': 400,
            },
        )
        sample = Scenes(tmp_path, filename_regex=REGEX)[WHOLE]
        assert sample['image'][1].std() > 0
        assert sample['image'].shape == (2, 64, 64)

    def test_missing_band(self, tmp_path: Path) -> None:
        write_bands(tmp_path, 'S_1', B2={}, B3={})
        write_bands(tmp_path, 'S_2', B2={})
        with pytest.raises(ValueError, match=r"S_2_B2.tif: of its scene .*\['B3'\]"):
            Scenes(tmp_path, filename_regex=REGEX)

    def test_several_bands_where_one_is_said_to_be(self, tmp_path: Path) -> None:
        write_scene(tmp_path / 'S_1_B1.tif', bands=2)
        with pytest.raises(ValueError, match=r'S_1_B1.tif: holds 2 bands'):
            Scenes(tmp_path, filename_regex=REGEX)

    @pytest.mark.parametrize(
        ('regex', 'error', 'message'),
        [
            ('(', ValueError, 'no regular expression'),
            (r'S_\d+\.tif', ValueError, 'no group named band'),
            (r'x(?P<band>B\d)', FileNotFoundError, r'none of 1 files.*S_1_B1.tif'),
        ],
    )
    def test_wrong_regex(
        self, tmp_path: Path, regex: str, error: type[Exception], message: str
    ) -> None:
        write_bands(tmp_path, 'S_1', B1={})
        with pytest.raises(error, match=message):
            Scenes(tmp_path, filename_regex=regex)

    def test_names_that_are_too_few(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', bands=3)
        with pytest.raises(ValueError, match=r'a.tif has 3 bands, but all_bands names'):
            Scenes(path, ['B2'], all_bands=['B2', 'B3'])


class TestSensors:
    def test_each_with_its_bands_and_unit(self, tmp_path: Path) -> None:
        a = write_scene(tmp_path / 'a' / '1.tif', bands=4, dtype='uint8')
        b = write_bands(
            tmp_path / 'b',
            'S_1',
            B3={'crs': 'EPSG:32622', 'dtype': 'int16'},
            B8={'crs': 'EPSG:32622', 'dtype': 'float32'},
        )
        dataset = Scenes(
            sensors=[
                Sensor(str(a.parent), [4, 1], scale=1 / 255),
                Sensor(
                    [str(tmp_path / 'b')],
                    ['B8', 'B3'],
                    filename_regex=REGEX,
                    scale=1e-4,
                    offset=-0.1,
                ),
            ]
        )
        assert dataset.bands == (4, 1)
        first = dataset[WHOLE]['image']
        np.testing.assert_allclose(first, read(a)[[3, 0]] / 255, rtol=1e-6)
        second = dataset[Patch(1, 0, 0, 64)]['image']
        expected = np.concatenate([read(b['B8']), read(b['B3'])]) * 1e-4 - 0.1
        np.testing.assert_allclose(second, expected, rtol=1e-5, atol=1e-6)

    def test_fill_is_told_in_stored_values(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.25)
        dataset = Scenes(sensors=[Sensor(str(path), nodata=0, scale=2, offset=5)])
        assert dataset[WHOLE]['valid'].float().mean() == 0.75

    @pytest.mark.parametrize(
        ('sensors', 'arguments', 'message'),
        [
            ([], {}, 'sensors is empty'),
            ([Sensor()], {'bands': [1]}, 'bands, all_bands, .* of their own'),
        ],
    )
    def test_wrong(
        self, sensors: list[Sensor], arguments: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            Scenes(sensors=sensors, **arguments)

    @pytest.mark.parametrize(
        ('arguments', 'message'),
        [
            ({'bands': []}, 'bands is empty'),
            ({'bands': [1, 1]}, 'names a band twice'),
            ({'all_bands': ['a', 'a']}, 'names a band twice'),
            ({'scale': 0.0}, 'scale=0.0'),
            ({'scale': float('nan')}, 'scale=nan'),
            ({'offset': float('inf')}, 'offset=inf'),
        ],
    )
    def test_wrong_values(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Sensor(**arguments)

    def test_different_numbers_of_bands(self, tmp_path: Path) -> None:
        a = write_scene(tmp_path / 'a.tif', bands=4)
        with pytest.raises(ValueError, match=r'a.tif has 2 bands.* has 3'):
            Scenes(sensors=[Sensor(str(a), [1, 2, 3]), Sensor(str(a), [1, 2])])


class TestMasks:
    @pytest.mark.parametrize('internal', [True, False])
    def test_mask_band(self, tmp_path: Path, internal: bool) -> None:
        path = write_scene(tmp_path / 'a.tif')
        expected = np.ones((64, 64), dtype=bool)
        expected[:10] = False
        with (
            rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal),
            rasterio.open(path, 'r+') as file,
        ):
            file.write_mask(expected)
        assert path.with_suffix('.tif.msk').exists() is not internal
        np.testing.assert_array_equal(Scenes(path)[WHOLE]['valid'][0], expected)

    @pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
    def test_alpha_beside_other_bands(self, tmp_path: Path, dtype: str) -> None:
        path = write_scene(tmp_path / 'a.tif', bands=2, dtype=dtype)
        with rasterio.open(path, 'r+') as file:
            file.colorinterp = [ColorInterp.gray, ColorInterp.alpha]
            alpha = np.full((64, 64), np.iinfo(dtype).max, dtype=dtype)
            alpha[:, :5] = 0
            file.write(alpha, 2)
        dataset = Scenes(path, all_bands=['pan'])
        assert dataset.bands == ('pan',)
        np.testing.assert_array_equal(dataset[WHOLE]['valid'][0], alpha > 0)

    def test_nan_by_tag(self, tmp_path: Path) -> None:
        path = write_scene(
            tmp_path / 'a.tif', dtype='float32', fill=0.5, nodata=float('nan')
        )
        sample = Scenes(path)[WHOLE]
        assert sample['valid'].float().mean() == 0.5
        assert sample['image'].isfinite().all()

    def test_tag_and_value_together(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.5, nodata=0)
        with rasterio.open(path, 'r+') as file:
            image = file.read()
            image[:, 32:40] = 77
            file.write(image)
        valid = Scenes(path, nodata=77)[WHOLE]['valid'][0]
        assert not valid[:40].any()
        assert valid[40:].float().mean() > 0.99

    def test_value_that_the_data_type_cannot_hold(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', dtype='uint8')
        assert Scenes(path, nodata=-9999)[WHOLE]['valid'].all()

    def test_huge_fill(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', dtype='float32', fill=0.5)
        lowest = -1.7976931348623157e308
        with rasterio.open(path) as file:
            image, profile = file.read().astype(np.float64), file.profile
        image[:, :32] = lowest
        profile.update(dtype='float64', nodata=lowest)
        with rasterio.open(path, 'w', **profile) as file:
            file.write(image)
        sample = Scenes(path)[WHOLE]
        assert sample['valid'].float().mean() == 0.5
        assert sample['image'].isfinite().all()


def test_landsat8() -> None:
    dataset = Scenes(
        str(LANDSAT / '*.TIF'),
        ['B4', 'B3', 'B2'],
        nodata=0,
        all_bands=['B2', 'B3', 'B4'],
        filename_regex=r'LC08_.*_(B234|(?P<band>B\d))\.TIF',
        min_valid=0.9,
    )
    assert len(dataset) == 2
    bands, many = dataset.scenes
    assert [len(scene.sources) for scene in (bands, many)] == [3, 1]
    assert many.coverage is not None
    fill = many.coverage.sums[-1, -1] / (many.height * many.width)
    assert fill == pytest.approx((read(Path(many.path)) == 0).all(axis=0).mean())
    assert 0.4 < fill < 0.6
    # the same ground is the same, up to what the two rows were processed apart for
    x, y = 731_220, -2_783_070
    samples = []
    for i, scene in enumerate((bands, many)):
        col, row = ~scene.transform * (x, y)
        samples.append(dataset[Patch(i, int(row), int(col), 64)])
    assert all(sample['valid'].all() for sample in samples)
    first, second = (sample['image'].flatten(1) for sample in samples)
    for a, b in zip(first, second, strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.999  # a pixel off: 0.98


def test_many_beyond_the_earth(tmp_path: Path) -> None:
    """GDAL tells of five outlines that it cannot project, then fails silently."""
    path = write_scene(tmp_path / 'far.tif', bands=1, origin=(1e30, 1e30))
    for _ in range(8):  # the first has it from GDAL, the last from nobody
        with pytest.raises(ValueError, match='no longitude and latitude'):
            Scenes(path)
