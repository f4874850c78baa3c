# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A second start takes what the first found out, where it still holds, and no more."""

import os
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import Affine
from safetensors.numpy import save

from tests.data.geotiff.data import ORIGIN, generate, write_scene
from tests.rasters.cached_scenes import KINDS, Kind, files, region
from torchgeo_cmid.datasets import Scenes, Sensor
from torchgeo_cmid.rasters import cache, raster, records, scene
from torchgeo_cmid.rasters.cache import BlockCache
from torchgeo_cmid.rasters.coverage import Coverage
from torchgeo_cmid.rasters.records import Records
from torchgeo_cmid.rasters.source import Source

Counts = dict[str, list[str]]


@pytest.fixture(autouse=True)
def looked(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """The files that were opened to be checked, and those searched for fill."""
    counts: Counts = {'opened': [], 'searched': []}
    valid = Source.valid

    def check(path: str, *args: Any) -> Any:
        counts['opened'].append(os.path.basename(path))
        return raster.check_raster(path, *args)

    def search(self: Source, window: Any) -> Any:
        counts['searched'].append(os.path.basename(self.path))
        return valid(self, window)

    monkeypatch.setattr(scene, 'check_raster', check)
    monkeypatch.setattr(Source, 'valid', search)
    monkeypatch.setattr(cache, 'RESERVE', 0)
    return counts


def start(looked: Counts, folder: Path, **arguments: Any) -> tuple[Scenes, Counts]:
    """Make a data set with a cache, and tell what was looked at."""
    for paths in looked.values():
        paths.clear()
    dataset = Scenes(**arguments, cache=str(folder / 'cache'))
    return dataset, {name: sorted(set(paths)) for name, paths in looked.items()}


def assert_as_without(dataset: Scenes, **arguments: Any) -> None:
    """Compare with a data set that knows nothing."""
    plain = Scenes(**arguments)
    assert dataset.scenes == plain.scenes
    for one, other in zip(dataset.scenes, plain.scenes, strict=True):
        assert tuple(one.transform) == tuple(other.transform)
        assert one.crs.to_wkt() == other.crs.to_wkt()
        assert (one.coverage is None) == (other.coverage is None)
        if one.coverage is not None and other.coverage is not None:
            assert one.coverage.cell == other.coverage.cell
            np.testing.assert_array_equal(one.coverage.sums, other.coverage.sums)
    assert dataset.bands == plain.bands
    assert dataset.index.index.equals(plain.index.index)
    assert dataset.index.filepath.tolist() == plain.index.filepath.tolist()
    footprints = dataset.index.geometry.to_wkb().tolist()
    assert footprints == plain.index.geometry.to_wkb().tolist()


def kept(folder: Path, kind: str) -> list[Path]:
    return sorted((folder / 'cache' / kind).glob('*'))


class TestSame:
    @pytest.mark.parametrize('min_valid', [0.0, 0.3])
    @pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
    def test_as_without(
        self, kind: Kind, min_valid: float, tmp_path: Path, looked: Counts
    ) -> None:
        arguments = kind(tmp_path / 'data') | {'min_valid': min_valid}
        for _ in range(3):
            dataset, counts = start(looked, tmp_path, **arguments)
            assert_as_without(dataset, **arguments)
        assert counts == {'opened': [], 'searched': []}

    def test_dates(self, tmp_path: Path, looked: Counts) -> None:
        write_scene(tmp_path / 'data' / 'a_20240105.tif')
        arguments: dict[str, Any] = {'paths': tmp_path / 'data'}
        for regex in (None, r'a_(?P<date>\d{8})\.tif', r'a_(?P<date>\d{8})\.tif'):
            arguments['filename_regex'] = regex
            dataset, counts = start(looked, tmp_path, **arguments)
            assert_as_without(dataset, **arguments)
        assert counts['opened'] == []

    def test_outside_of_the_region(self, tmp_path: Path, looked: Counts) -> None:
        """It is known that they are, too."""
        arguments = region(tmp_path / 'data')
        x, y = ORIGIN
        write_scene(tmp_path / 'data' / 'far.tif', origin=(x + 50_000, y))
        arguments['paths'] = tmp_path / 'data'
        for expected in (['a.tif', 'far.tif'], []):
            dataset, counts = start(looked, tmp_path, **arguments)
            assert_as_without(dataset, **arguments)
            assert len(dataset) == 1
            assert counts['opened'] == expected

    def test_number_of_bands_is_still_compared(
        self, tmp_path: Path, looked: Counts
    ) -> None:
        write_scene(tmp_path / 'data' / 'a.tif', bands=3)
        path = write_scene(tmp_path / 'data' / 'b.tif', bands=3)
        start(looked, tmp_path, paths=tmp_path / 'data')
        time.sleep(0.02)
        write_scene(tmp_path / 'data' / 'a.tif', bands=4)
        for _ in range(2):
            with pytest.raises(ValueError, match=r'b.tif has 3 bands, but .*a.tif has'):
                start(looked, tmp_path, paths=tmp_path / 'data')
        path.unlink()
        assert start(looked, tmp_path, paths=tmp_path / 'data')[0].bands == (1, 2, 3, 4)

    def test_bad_files_are_looked_at_every_time(
        self, tmp_path: Path, looked: Counts
    ) -> None:
        generate(tmp_path / 'data', 2)
        (tmp_path / 'data' / 'z.tif').write_bytes(b'no raster')
        arguments: dict[str, Any] = {'paths': tmp_path / 'data'}
        for _ in range(2):  # what was found before the error is kept
            with pytest.raises(OSError, match=r'z.tif: not a readable raster'):
                start(looked, tmp_path, **arguments)
        assert set(looked['opened']) == {'z.tif'}
        with pytest.warns(UserWarning, match='1 bad scenes are skipped'):
            dataset, counts = start(looked, tmp_path, **arguments, skip_bad_files=True)
        assert list(dataset.skipped) == [str(tmp_path / 'data' / 'z.tif')]
        assert counts['opened'] == ['z.tif']

    def test_nothing_is_written_elsewhere(self, tmp_path: Path, looked: Counts) -> None:
        generate(tmp_path / 'data', 2, fill=0.3, nodata=0)

        def tree() -> dict[str, int]:
            paths = tmp_path.rglob('*')
            return {str(p): p.stat().st_mtime_ns for p in paths if p.is_file()}

        before = tree()
        arguments = {'paths': tmp_path / 'data', 'min_valid': 0.5}
        start(looked, tmp_path, **arguments)
        new = tree()
        inside = str(tmp_path / 'cache')
        assert {p: t for p, t in new.items() if not p.startswith(inside)} == before
        assert len(new) - len(before) == 1 + 1 + 2  # the tag, records, coverages
        start(looked, tmp_path, **arguments)
        assert tree() == new  # a start that finds nothing new writes nothing

    @pytest.mark.parametrize('same', [True, False])
    def test_relative_paths(
        self,
        same: bool,
        tmp_path: Path,
        looked: Counts,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Known by where they lie, and read by the name that is given now."""
        for i, name in enumerate(('x', 'y')):
            write_scene(tmp_path / name / 'a.tif', crs=f'EPSG:3262{i + 1}')
            os.utime(tmp_path / name / 'a.tif', ns=(0, 0))
        monkeypatch.chdir(tmp_path / 'x')
        start(looked, tmp_path, paths='a.tif', min_valid=0.0)
        monkeypatch.chdir(tmp_path / 'x' if same else tmp_path / 'y')
        dataset, counts = start(looked, tmp_path, paths='./a.tif')
        assert counts['opened'] == ([] if same else ['a.tif'])
        assert dataset.scenes[0].path == './a.tif'
        assert dataset.scenes[0].crs.to_epsg() == (32621 if same else 32622)


def change_crs(folder: Path) -> None:
    write_scene(folder / 'scene_1.tif', crs='EPSG:32622')


def replace_by_another(folder: Path) -> None:
    write_scene(folder.parent / 'new.tif', crs='EPSG:32622')
    (folder.parent / 'new.tif').replace(folder / 'scene_1.tif')


def edit_in_place(folder: Path) -> None:
    with rasterio.open(folder / 'scene_1.tif', 'r+') as file:
        file.transform = file.transform @ Affine.translation(100, 0)


def add_mask(folder: Path) -> None:
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False),
        rasterio.open(folder / 'scene_1.tif', 'r+') as file,
    ):
        file.write_mask(np.zeros((64, 64), dtype=bool))


class TestChanges:
    @pytest.mark.parametrize(
        'change', [change_crs, replace_by_another, edit_in_place, add_mask]
    )
    def test_of_one_file(
        self, change: Callable[[Path], None], tmp_path: Path, looked: Counts
    ) -> None:
        generate(tmp_path / 'data', 3)
        arguments = {'paths': tmp_path / 'data', 'min_valid': 0.5}
        start(looked, tmp_path, **arguments)
        time.sleep(0.02)
        change(tmp_path / 'data')
        for expected in (['scene_1.tif'], []):
            dataset, counts = start(looked, tmp_path, **arguments)
            assert_as_without(dataset, **arguments)
            assert counts['opened'] == expected

    def test_files_come_and_go(self, tmp_path: Path, looked: Counts) -> None:
        paths = generate(tmp_path / 'data', 3)
        arguments = {'paths': tmp_path / 'data'}
        start(looked, tmp_path, **arguments)
        for path, expected in ((paths[1], []), (paths[0], [])):
            path.unlink()
            dataset, counts = start(looked, tmp_path, **arguments)
            assert_as_without(dataset, **arguments)
            assert counts['opened'] == expected
        write_scene(tmp_path / 'data' / 'sub' / 'new.tif')
        dataset, counts = start(looked, tmp_path, **arguments)
        assert_as_without(dataset, **arguments)
        assert counts['opened'] == ['new.tif']

    @pytest.mark.parametrize('name', ['A.TFW', 'A.tfw', 'a.Wld', 'A.TIFw', 'A.TAB'])
    @pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
    def test_of_a_file_that_georeferences_another(
        self, name: str, tmp_path: Path, looked: Counts
    ) -> None:
        """GDAL looks for it in any case, where the raster has no georeference."""
        path = tmp_path / 'data' / 'A.TIF'
        path.parent.mkdir()
        profile = {'count': 1, 'height': 64, 'width': 64, 'dtype': 'uint8'}
        with rasterio.open(path, 'w', driver='GTiff', crs='EPSG:32621', **profile) as f:
            f.write(np.ones((1, 64, 64), dtype=np.uint8))
        side = path.with_name(name)

        def write(x: float) -> None:
            time.sleep(0.02)
            side.write_text(f'30\n0\n0\n-30\n{x}\n7000000\n')
            if name == 'A.TAB':
                points = [(x, 7e6, 0, 0), (x + 1920, 7e6, 64, 0), (x, 6998080, 0, 64)]
                side.write_text(
                    '!table\n!version 300\nDefinition Table\n File "A.TIF"\n'
                    ' Type "RASTER"\n'
                    + ',\n'.join(
                        f' ({px},{py}) ({col},{row}) Label "Pt"'
                        for px, py, col, row in points
                    )
                    + '\n CoordSys Earth Projection 8, 104, "m", -57, 0, 0.9996, '
                    '500000, 0\n Units "m"\n'
                )

        origins = []
        for x in (600_000.0, 700_000.0):
            write(x)
            dataset, counts = start(looked, tmp_path, paths=tmp_path / 'data')
            assert counts['opened'] == ['A.TIF']
            origins.append(dataset.scenes[0].transform.c)
        assert origins[1] - origins[0] == 100_000
        assert start(looked, tmp_path, paths=tmp_path / 'data')[1]['opened'] == []
        side.unlink()
        with pytest.raises(ValueError, match=r'A.TIF: no geotransform'):
            start(looked, tmp_path, paths=tmp_path / 'data')

    def test_of_one_band(self, tmp_path: Path, looked: Counts) -> None:
        arguments = files(tmp_path / 'data')
        start(looked, tmp_path, **arguments)
        time.sleep(0.02)
        write_scene(tmp_path / 'data' / 'S_1_B2.tif', bands=1, res=60, size=20, seed=9)
        dataset, counts = start(looked, tmp_path, **arguments)
        assert_as_without(dataset, **arguments)
        assert len(counts['opened']) == 4  # the scene is looked at as a whole

    def test_that_cannot_be_seen(
        self, tmp_path: Path, looked: Counts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a folder that may be entered, but not listed, files may come and go."""

        def forbidden(folder: str) -> list[str]:
            raise PermissionError(13, 'Permission denied', folder)

        path = write_scene(tmp_path / 'data' / 'a.tif')
        BlockCache(str(tmp_path / 'cache'))
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr('torchgeo_cmid.rasters.stamp.os.listdir', forbidden)
                dataset, counts = start(looked, tmp_path, paths=path)
            assert len(dataset) == 1
            assert counts['opened'] == ['a.tif']

    def test_of_an_archive(self, tmp_path: Path, looked: Counts) -> None:
        path = write_scene(tmp_path / 'a.tif')
        for crs, expected in (('EPSG:32621', 1), ('EPSG:32621', 0), ('EPSG:32622', 1)):
            if expected:
                time.sleep(0.02)
                write_scene(path, crs=crs)
                with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
                    file.write(path, 'a.tif')
            name = f'/vsizip/{tmp_path}/a.zip/a.tif'
            dataset, counts = start(looked, tmp_path, paths=name)
            assert dataset.scenes[0].crs.to_string() == crs
            assert len(counts['opened']) == expected

    def test_of_what_a_format_names(self, tmp_path: Path, looked: Counts) -> None:
        """A VRT shows nothing of a change of its files: it is looked at every time."""
        path = write_scene(tmp_path / 'a.tif', fill=0.5, nodata=0)
        rasterio.shutil.copy(path, tmp_path / 'a.vrt', driver='VRT')
        arguments = {'paths': tmp_path / 'a.vrt', 'min_valid': 0.5}
        for _ in range(2):
            _, counts = start(looked, tmp_path, **arguments)
            assert counts == {'opened': ['a.vrt'], 'searched': ['a.vrt']}

    def test_while_it_is_looked_at(
        self, tmp_path: Path, looked: Counts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_scene(tmp_path / 'data' / 'a.tif', fill=0.5, nodata=0)
        check = scene.check_raster

        def touch(name: str, *args: Any) -> Any:
            grid = check(name, *args)
            os.utime(path, ns=(0, time.time_ns()))
            return grid

        with monkeypatch.context() as patch:
            patch.setattr(scene, 'check_raster', touch)
            start(looked, tmp_path, paths=path, min_valid=0.5)
        assert not kept(tmp_path, 'records')
        assert not kept(tmp_path, 'coverage')
        _, counts = start(looked, tmp_path, paths=path, min_valid=0.5)
        assert counts['opened'] == ['a.tif']


class TestArguments:
    @pytest.mark.parametrize(
        'other',
        [
            {'bands': [2, 1]},
            {'nodata': 7.0},
            {'all_bands': ['red', 'green', 'nir']},
            {'filename_regex': r'scene_(?P<date>\d)\.tif', 'date_format': '%H'},
            {'roi': [-53.0, 64.0, -50.0, 65.5]},
            {'sensors': [Sensor('{data}', scale=0.5)]},
            {'paths': '{data}/scene_*.tif'},
        ],
        ids=lambda other: next(iter(other)),
    )
    def test_of_others_are_not_used(
        self, other: dict[str, Any], tmp_path: Path, looked: Counts
    ) -> None:
        data = str(tmp_path / 'data')
        generate(tmp_path / 'data', 2, fill=0.2, nodata=0)
        plain: dict[str, Any] = {'paths': data, 'min_valid': 0.5}
        if 'sensors' in other:
            other = {'sensors': [Sensor(data, scale=0.5)]}
        if 'paths' in other:
            other = {'paths': other['paths'].format(data=data)}
        for _ in range(2):
            start(looked, tmp_path, **plain)
        dataset, counts = start(looked, tmp_path, **plain | other)
        assert_as_without(dataset, **plain | other)
        assert len(counts['opened']) == 2
        for arguments in (plain, plain | other):  # and both are kept
            dataset, counts = start(looked, tmp_path, **arguments)
            assert_as_without(dataset, **arguments)
            assert counts == {'opened': [], 'searched': []}

    def test_of_another_fill_value(self, tmp_path: Path, looked: Counts) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.3)
        for nodata in (0, 9):
            arguments = {'paths': path, 'min_valid': 0.5, 'nodata': nodata}
            dataset, counts = start(looked, tmp_path, **arguments)
            assert counts['searched'] == ['a.tif']
            assert_as_without(dataset, **arguments)

    def test_of_the_scenes_bands(self, tmp_path: Path, looked: Counts) -> None:
        """A scene that comes first names the bands for all."""
        for i in (1, 2):
            write_scene(tmp_path / 'data' / f'S_2_B{i}.tif', bands=1, seed=i)
        arguments: dict[str, Any] = {
            'paths': tmp_path / 'data',
            'filename_regex': r'S_\d_(?P<band>B\d)\.tif',
        }
        assert start(looked, tmp_path, **arguments)[0].bands == ('B1', 'B2')
        write_scene(tmp_path / 'data' / 'S_1_B2.tif', bands=1)
        dataset, _ = start(looked, tmp_path, **arguments)
        assert dataset.bands == ('B2',)
        assert [len(s.sources) for s in dataset.scenes] == [1, 1]
        assert_as_without(dataset, **arguments)

    def test_of_bands_that_another_scene_names(
        self, tmp_path: Path, looked: Counts
    ) -> None:
        """A file of all bands is read by the names that files of one band have."""
        names = ['B3', 'B2', 'B1']
        write_scene(tmp_path / 'data' / 'S_2.tif', descriptions=names)
        arguments: dict[str, Any] = {
            'paths': tmp_path / 'data',
            'filename_regex': r'S_\d(_(?P<band>B\d))?\.tif',
        }
        dataset, _ = start(looked, tmp_path, **arguments)
        assert dataset.scenes[0].indexes == (1, 2, 3)
        for i in (1, 2):
            write_scene(tmp_path / 'data' / f'S_1_B{i}.tif', bands=1, seed=i)
        dataset, _ = start(looked, tmp_path, **arguments)
        assert dataset.scenes[1].indexes == (3, 2)
        assert_as_without(dataset, **arguments)

    def test_of_another_window(self, tmp_path: Path) -> None:
        """Fill of another part of the same size."""
        path = write_scene(tmp_path / 'a.tif', fill=0.2, nodata=0)
        scene = Scenes(path, min_valid=0.5).scenes[0]
        assert scene.coverage is not None
        known = Records(BlockCache(str(tmp_path / 'cache')), Sensor(str(path)))
        known.keep_coverage(scene, scene.coverage)
        assert known.find_coverage(scene) is not None
        assert known.find_coverage(replace(scene, origin=(1, 0))) is None

    def test_of_another_version(
        self, tmp_path: Path, looked: Counts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.2, nodata=0)
        arguments = {'paths': path, 'min_valid': 0.5}
        start(looked, tmp_path, **arguments)
        monkeypatch.setattr(records, 'FORMAT', records.FORMAT + 1)
        _, counts = start(looked, tmp_path, **arguments)
        assert counts == {'opened': ['a.tif'], 'searched': ['a.tif']}


def damages(content: bytes) -> Iterator[bytes]:
    """Ways in which a file may have been damaged."""
    yield b''
    yield b'garbage'
    yield content[: len(content) // 2]
    yield content[:-1]
    yield content + b'\0'
    for place in (0, cache.DIGEST, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        yield bytes(changed)


class TestDamage:
    @pytest.mark.parametrize(
        ('kind', 'count'), [('records', 'opened'), ('coverage', 'searched')]
    )
    def test_is_ignored_and_mended(
        self, kind: str, count: str, tmp_path: Path, looked: Counts
    ) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.5, nodata=0)
        arguments = {'paths': path, 'min_valid': 0.5}
        start(looked, tmp_path, **arguments)
        (file,) = kept(tmp_path, kind)
        whole = file.read_bytes()
        for damaged in damages(whole):
            file.write_bytes(damaged)
            dataset, counts = start(looked, tmp_path, **arguments)
            assert counts[count] == ['a.tif']
            assert_as_without(dataset, **arguments)
            assert file.read_bytes() == whole

    def test_of_another_scene(self, tmp_path: Path, looked: Counts) -> None:
        """What is whole, but lies under another one's name."""
        for i, fill in enumerate((0.2, 0.7)):
            write_scene(tmp_path / 'data' / f'{i}.tif', fill=fill, nodata=0)
        arguments = {'paths': tmp_path / 'data', 'min_valid': 0.5}
        start(looked, tmp_path, **arguments)
        first, second = kept(tmp_path, 'coverage')
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(content)
        dataset, counts = start(looked, tmp_path, **arguments)
        assert counts['searched'] == ['0.tif', '1.tif']
        assert_as_without(dataset, **arguments)

    @pytest.mark.parametrize(
        'content',
        [
            b'',
            b'no safetensors',
            save({'text': np.zeros(3, np.uint8)}),
            save(
                {
                    'text': np.frombuffer(b'{"scenes": {"a": 1}, "systems": []}', 'u1'),
                    'shapes': np.zeros(0, np.uint8),
                    'ends': np.zeros(0, np.int64),
                }
            ),
            save(
                {
                    'text': np.frombuffer(b'{"scenes": {}, "systems": ["x"]}', 'u1'),
                    'shapes': np.ones(9, np.uint8),
                    'ends': np.array([9]),
                }
            ),
            np.array([1, 2, 2], '<i8').tobytes() + b'no zlib',
        ],
    )
    def test_whole_but_strange(
        self,
        content: bytes,
        tmp_path: Path,
        looked: Counts,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.5, nodata=0)
        arguments = {'paths': path, 'min_valid': 0.5}
        keep = BlockCache.keep
        with monkeypatch.context() as patch:
            patch.setattr(
                BlockCache,
                'keep',
                lambda self, kind, key, payload: keep(self, kind, key, content),
            )
            start(looked, tmp_path, **arguments)
        dataset, counts = start(looked, tmp_path, **arguments)
        assert counts == {'opened': ['a.tif'], 'searched': ['a.tif']}
        assert_as_without(dataset, **arguments)

    def test_coverage_of_other_cells(
        self, tmp_path: Path, looked: Counts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write_scene(tmp_path / 'a.tif', fill=0.5, nodata=0)
        arguments = {'paths': path, 'min_valid': 0.5}
        wrong = Coverage(1, np.zeros((3, 3), dtype=np.int64)).pack()
        with monkeypatch.context() as patch:
            patch.setattr(Coverage, 'pack', lambda self: wrong)
            start(looked, tmp_path, **arguments)
        dataset, _ = start(looked, tmp_path, **arguments)
        assert_as_without(dataset, **arguments)


class TestFill:
    def test_second_start_reads_no_pixel(self, tmp_path: Path, looked: Counts) -> None:
        """With min_valid, the whole archive was decoded at every start."""
        generate(tmp_path / 'data', 3, fill=0.3, nodata=0)
        arguments = {'paths': tmp_path / 'data', 'min_valid': 0.5}
        names = [f'scene_{i}.tif' for i in range(3)]
        assert start(looked, tmp_path, **arguments)[1]['searched'] == names
        dataset, counts = start(looked, tmp_path, **arguments)
        assert counts == {'opened': [], 'searched': []}
        assert_as_without(dataset, **arguments)
        # another share is asked of the same fill
        _, counts = start(looked, tmp_path, **arguments | {'min_valid': 0.9})
        assert counts == {'opened': [], 'searched': []}

    def test_changed_file_is_measured_anew(
        self, tmp_path: Path, looked: Counts
    ) -> None:
        paths = generate(tmp_path / 'data', 2, fill=0.3, nodata=0)
        arguments = {'paths': tmp_path / 'data', 'min_valid': 0.5}
        start(looked, tmp_path, **arguments)
        time.sleep(0.02)
        with rasterio.open(paths[0], 'r+') as file:
            file.write(np.zeros((3, 64, 64), dtype=np.uint16))
        dataset, counts = start(looked, tmp_path, **arguments)
        assert counts['searched'] == ['scene_0.tif']
        assert_as_without(dataset, **arguments)

    def test_pack(self) -> None:
        rng = np.random.default_rng(0)
        for cell, shape in ((1, (1, 1)), (7, (512, 3)), (130_000, (2, 5))):
            counts = rng.integers(0, cell**2, shape, endpoint=True) % 2**31
            coverage = Coverage.of_counts(cell, counts)
            again = Coverage.unpack(coverage.pack())
            assert again.cell == cell
            np.testing.assert_array_equal(again.sums, coverage.sums)
