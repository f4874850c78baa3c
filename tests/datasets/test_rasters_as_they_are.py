# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Bands in one file or many, several sensors, fill in all its forms, a region."""

import zipfile
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

from tests.data.geotiff.data import ORIGIN, generate, write_scene
from torchgeo_cmid.datasets import Patch, Scenes, Sensor

REGEX = r'S_\d+(_(?P<band>B\d+))?\.tif'
LANDSAT = Path('/work/shared/data/landsat8')
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


def starts(dataset: Scenes, scene: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    height, width = dataset.scenes[scene].height, dataset.scenes[scene].width
    rows, cols = np.mgrid[: height - size + 1, : width - size + 1]
    return rows.ravel(), cols.ravel()


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


class TestMinValid:
    def test_exact_in_small_scenes(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        rng = np.random.default_rng(0)
        expected = rng.random((64, 64)) < 0.8
        with rasterio.open(path, 'r+') as file:
            file.write_mask(expected)
        dataset = Scenes(path, min_valid=0.8)
        rows, cols = starts(dataset, 0, 8)
        shares = np.array(
            [
                expected[row : row + 8, col : col + 8].mean()
                for row, col in zip(rows, cols, strict=True)
            ]
        )
        keep = dataset.scenes[0].eligible(rows, cols, 8)
        np.testing.assert_array_equal(keep, shares >= 0.8)
        assert 0.1 < keep.mean() < 0.9

    def test_never_less_where_cells_are_coarse(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr('torchgeo_cmid.datasets.coverage.MAX_CELLS', 16)
        monkeypatch.setattr('torchgeo_cmid.datasets.coverage.CHUNK', 600)
        path = write_scene(tmp_path / 'a.tif', size=(70, 61), fill=0.3, nodata=0)
        dataset = Scenes(path, min_valid=1.0)
        assert dataset.scenes[0].coverage is not None
        assert dataset.scenes[0].coverage.cell == 5
        rows, cols = starts(dataset, 0, 8)
        keep = dataset.scenes[0].eligible(rows, cols, 8)
        assert rows[keep].min() == 25  # 21 rows of fill, cells of 5
        assert keep[rows >= 25].all()

    def test_files_without_fill_are_not_read(self, tmp_path: Path) -> None:
        dataset = Scenes(write_scene(tmp_path / 'a.tif'), min_valid=1.0)
        assert dataset.scenes[0].coverage is None

    @pytest.mark.parametrize('share', [-0.1, 1.1, float('nan')])
    def test_out_of_range(self, tmp_path: Path, share: float) -> None:
        with pytest.raises(ValueError, match=f'min_valid={share} must be'):
            Scenes(tmp_path, min_valid=share)


class TestRegion:
    def polygon(self) -> shapely.Polygon:
        """A triangle in the grid of the first generated scene."""
        x, y = ORIGIN
        return shapely.Polygon(
            [(x + 300, y - 300), (x + 1500, y - 300), (x + 300, y - 1500)]
        )

    @pytest.mark.parametrize('ending', ['gpkg', 'geojson'])
    def test_polygons_of_a_file(self, tmp_path: Path, ending: str) -> None:
        files = generate(tmp_path, 2)
        path = tmp_path / f'roi.{ending}'
        frame = geopandas.GeoDataFrame(geometry=[self.polygon()], crs='EPSG:32621')
        if ending == 'geojson':
            frame = frame.to_crs('EPSG:4326')
        frame.to_file(path)
        dataset = Scenes(tmp_path, roi=str(path))
        assert len(dataset) == 1
        scene = dataset.scenes[0]
        assert (scene.height, scene.width) == pytest.approx((40, 40), abs=1)
        assert scene.origin == pytest.approx((10, 10), abs=1)
        np.testing.assert_array_equal(
            dataset[Patch(0, 0, 0, 16)]['image'],
            read(files[0])[:, scene.origin[0] :, scene.origin[1] :][:, :16, :16],
        )
        rows, cols = starts(dataset, 0, 16)
        keep = scene.eligible(rows, cols, 16)
        inside = np.array(
            [
                self.polygon()
                .buffer(0.5)
                .covers(
                    shapely.box(
                        *rasterio.transform.array_bounds(
                            16, 16, scene.transform @ Affine.translation(col, row)
                        )
                    )
                )
                for row, col in zip(rows, cols, strict=True)
            ]
        )
        np.testing.assert_array_equal(keep, inside)
        assert 10 < keep.sum() < keep.size / 2
        place = dataset.index.geometry.iloc[0]
        assert place.area == pytest.approx(frame.to_crs(4326).area[0], rel=0.02)

    def test_box_that_holds_everything_changes_nothing(self, tmp_path: Path) -> None:
        generate(tmp_path, 2)
        dataset = Scenes(tmp_path, roi=[-60, 60, -50, 70])
        assert dataset.scenes == Scenes(tmp_path).scenes

    def test_across_the_antimeridian(self, tmp_path: Path) -> None:
        path = write_scene(
            tmp_path / 'a.tif', crs='EPSG:32601', res=1000, origin=(320_000, 7e6)
        )
        assert Scenes(path, roi=[179, 60, -179, 65]).scenes == Scenes(path).scenes
        both = Scenes(path, roi=[179.8, 60, -179.8, 65]).scenes[0]
        east = Scenes(path, roi=[-180, 60, -179.8, 65]).scenes[0]
        assert both.region is not None
        assert both.region.geom_type == 'Polygon'
        assert both.region.area == pytest.approx(2 * east.region.area, rel=0.01)

    def test_rotated_scene(self, tmp_path: Path) -> None:
        turn = Affine.translation(*ORIGIN) @ Affine.rotation(30) @ Affine.scale(30, -30)
        path = write_scene(tmp_path / 'a.tif', transform=turn)
        whole = Scenes(path)
        outline = whole.index.geometry.iloc[0]
        west, south, east, north = outline.bounds
        middle = [(west + east) / 2, (south + north) / 2]
        dataset = Scenes(path, roi=[west, south, *middle])
        rows, cols = starts(dataset, 0, 8)
        keep = dataset.scenes[0].eligible(rows, cols, 8)
        assert 0 < keep.sum() < keep.size
        assert dataset.index.geometry.iloc[0].bounds[2] < middle[0] + 1e-4

    @pytest.mark.parametrize(
        ('roi', 'message'),
        [
            ([0, 0, 1], 'which is 4 numbers'),
            ([0, 1, 1, 0], 'south below north'),
            ([0, 0, 999, 1], 'west and east in -180 to 180'),
            ([float('nan')] * 4, 'west and east'),
            ([10, 10, 11, 11], '1 scenes lie outside roi'),
            (shapely.Point(0, 0), 'holds no polygon'),
            (shapely.box(7e5, 7e6, 8e5, 8e6), 'in longitude and latitude, in degrees'),
        ],
    )
    def test_wrong(self, tmp_path: Path, roi: Any, message: str) -> None:
        path = write_scene(tmp_path / 'a.tif')
        with pytest.raises(ValueError, match=message):
            Scenes(path, roi=roi)

    def test_wrong_files(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif')
        with pytest.raises(FileNotFoundError, match=r"roi='.*no.gpkg': no such file"):
            Scenes(path, roi=str(tmp_path / 'no.gpkg'))
        bad = tmp_path / 'bad.geojson'
        bad.write_text('{')
        with pytest.raises(ValueError, match=r'bad.geojson.*not a readable vector'):
            Scenes(path, roi=str(bad))
        empty = tmp_path / 'empty.gpkg'
        frame = geopandas.GeoDataFrame(geometry=[self.polygon()], crs='EPSG:32621')
        frame.iloc[:0].to_file(empty)
        with pytest.raises(ValueError, match=r'empty.gpkg.*holds no polygon'):
            Scenes(path, roi=str(empty))


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

        def fail(name: str, **kwargs: object) -> None:
            opened.append(name)
            raise rasterio.errors.RasterioIOError('no network here')

        monkeypatch.setattr('torchgeo_cmid.datasets.raster.rasterio.open', fail)
        with pytest.raises(OSError, match=f'{path}: not a readable raster.*no network'):
            Scenes(path)
        assert opened == [path]


@pytest.mark.skipif(not LANDSAT.exists(), reason='no Landsat 8 scenes here')
def test_landsat8() -> None:
    dataset = Scenes(
        LANDSAT,
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
    assert fill == pytest.approx(0.165, abs=0.001)
    # the same ground is the same, up to what the two rows were processed apart for
    x, y = 735_000, -2_795_000
    samples = []
    for i, scene in enumerate((bands, many)):
        col, row = ~scene.transform * (x, y)
        samples.append(dataset[Patch(i, int(row), int(col), 64)])
    assert all(sample['valid'].all() for sample in samples)
    first, second = (sample['image'].flatten(1) for sample in samples)
    for a, b in zip(first, second, strict=True):
        assert torch.corrcoef(torch.stack([a, b]))[0, 1] > 0.99
