# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Reads through the cache are those without it, and nothing breaks or is lost."""

import errno
import multiprocessing
import os
import pickle
import shutil
import signal
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp
from safetensors.numpy import load_file

from tests.data.geotiff.data import ORIGIN, write_scene
from torchgeo_cmid.datasets import Patch, Scenes, Sensor, cache, raster
from torchgeo_cmid.datasets.cache import TAG, UNFINISHED, BlockCache
from torchgeo_cmid.datasets.source import Source

SIZE = 150
PATCH = 48
X, Y = ORIGIN
REGEX = r'S_1_(?P<band>B\d)\.tif'


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small scenes hold many blocks, and any disk enough room."""
    monkeypatch.setattr(cache, 'BLOCK', 64)
    monkeypatch.setattr(cache, 'RESERVE', 0)


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


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no file be opened and no pixel be decoded any more."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError('the file was opened')

    raster._open.cache_clear()
    monkeypatch.setattr(raster, '_open', fail)
    monkeypatch.setattr(Source, 'load', fail)


class TestPixels:
    @pytest.mark.parametrize('kind', KINDS, ids=lambda kind: kind.__name__)
    def test_same_as_without(
        self, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = kind(tmp_path / 'data')
        expected, folder = Scenes(**arguments), tmp_path / 'cache'
        assert_same(Scenes(**arguments, cache=str(folder)), expected)  # fills it
        filled = {path: path.stat().st_mtime_ns for path in blocks(folder)}
        assert filled
        again = pickle.loads(pickle.dumps(Scenes(**arguments, cache=str(folder))))
        assert_same(again, expected)
        assert {path: path.stat().st_mtime_ns for path in blocks(folder)} == filled
        addresses = patches(expected)
        before = expected.__getitems__(addresses)
        no_decoding(monkeypatch)
        after = again.__getitems__(addresses)
        for a, b in zip(after, before, strict=True):
            assert a['image'].numpy().tobytes() == b['image'].numpy().tobytes()
            assert a['valid'].equal(b['valid'])

    def test_default_blocks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(cache, 'BLOCK', 512)
        path = write_scene(tmp_path / 'a.tif', size=(700, 1300))
        assert_same(Scenes(path, cache=str(tmp_path / 'cache')), Scenes(path))
        (wide,) = (load_file(p) for p in blocks(tmp_path / 'cache') if p.stem == '1-0')
        assert wide['pixels'].dtype == np.uint16
        assert wide['pixels'].shape == (3, 188, 512)

    def test_many_bands_make_small_blocks(self) -> None:
        assert cache._size(Source('a.tif', tuple(range(1000)))) == cache.SMALLEST_BLOCK

    def test_pixels_that_must_not_be_are_refused_in_the_patch_alone(
        self, tmp_path: Path
    ) -> None:
        path = write_scene(tmp_path / 'a.tif', size=SIZE, dtype='float32')
        with rasterio.open(path, 'r+') as file:
            image = file.read()
            image[:, 60, 60] = np.nan
            file.write(image)
        dataset = Scenes(path, cache=str(tmp_path / 'cache'))
        for _ in range(2):
            with pytest.raises(ValueError, match=r'a\.tif, rows 30 to 78.*NaN'):
                dataset[Patch(0, 30, 30, PATCH)]
            image = dataset[Patch(0, 0, 0, PATCH)]['image']  # the same block
            assert image.equal(Scenes(path)[Patch(0, 0, 0, PATCH)]['image'])

    def test_damage_outside_of_the_patch(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', size=128)
        copy(path, tiled=True, blockxsize=32, blockysize=32, compress='deflate')
        with rasterio.open(path) as file:
            offset = int(file.get_tag_item('BLOCK_OFFSET_1_1', 'TIFF', bidx=1))
        with path.open('r+b') as raw:
            raw.seek(offset)
            raw.write(bytes(64))
        plain, cached = Scenes(path), Scenes(path, cache=str(tmp_path / 'cache'))
        assert cached[Patch(0, 0, 0, 32)]['image'].equal(
            plain[Patch(0, 0, 0, 32)]['image']
        )
        with pytest.raises(OSError, match=r'a\.tif, rows 32 to 64.*unreadable'):
            cached[Patch(0, 32, 32, 32)]

    def test_other_formats_are_read_as_without(self, tmp_path: Path) -> None:
        path = write_scene(tmp_path / 'a.tif', size=SIZE)
        rasterio.shutil.copy(path, tmp_path / 'a.vrt', driver='VRT')
        dataset = Scenes(tmp_path / 'a.vrt', cache=str(tmp_path / 'cache'))
        assert_same(dataset, Scenes(path))
        assert not blocks(tmp_path / 'cache')


class TestChanges:
    def scene(self, folder: Path, seed: int = 0) -> Path:
        return write_scene(folder / 'a.tif', size=SIZE, seed=seed)

    def test_file(self, tmp_path: Path) -> None:
        """In this process, and in one that comes later."""
        dataset = Scenes(self.scene(tmp_path), cache=str(tmp_path / 'cache'))
        before = dataset[Patch(0, 0, 0, PATCH)]['image']
        time.sleep(0.02)
        path = self.scene(tmp_path, seed=1)
        with rasterio.open(path) as file:
            expected = file.read()[:, :PATCH, :PATCH].astype(np.float32)
        assert not np.array_equal(before, expected)
        for cached in (dataset, Scenes(path, cache=str(tmp_path / 'cache'))):
            image = cached[Patch(0, 0, 0, PATCH)]['image']
            np.testing.assert_array_equal(image, expected)

    @pytest.mark.parametrize('kind', [mask, sidecar])
    def test_mask(self, kind: Kind, tmp_path: Path) -> None:
        path = self.scene(tmp_path)
        dataset = Scenes(path, cache=str(tmp_path / 'cache'))
        assert dataset[Patch(0, 0, 0, PATCH)]['valid'].all()
        time.sleep(0.02)
        stat = path.stat()
        kind(tmp_path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        raster._open.cache_clear()
        dataset = Scenes(path, cache=str(tmp_path / 'cache'))
        assert not dataset[Patch(0, 0, 0, PATCH)]['valid'].all()

    def test_archive(self, tmp_path: Path) -> None:
        images = []
        for seed in range(2):
            with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
                file.write(self.scene(tmp_path, seed), 'a.tif')
            raster._open.cache_clear()
            path = f'/vsizip/{tmp_path}/a.zip/a.tif'
            dataset = Scenes(path, cache=str(tmp_path / 'cache'))
            images.append(dataset[Patch(0, 0, 0, PATCH)]['image'])
            time.sleep(0.02)
        assert not images[0].equal(images[1])

    def test_while_it_is_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What may be of either file is not kept."""
        path, load = self.scene(tmp_path), Source.load

        def touch(self: Source, *args: Any, **kwargs: Any) -> Any:
            loaded = load(self, *args, **kwargs)
            os.utime(path, ns=(0, time.time_ns()))
            return loaded

        monkeypatch.setattr(Source, 'load', touch)
        dataset = Scenes(path, cache=str(tmp_path / 'cache'))
        assert_same(dataset, Scenes(path))
        assert not blocks(tmp_path / 'cache')

    def test_relative_paths(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        images = []
        for i, name in enumerate(('x', 'y')):
            path = self.scene(tmp_path / name, seed=i)
            os.utime(path, ns=(0, 0))
            monkeypatch.chdir(tmp_path / name)
            raster._open.cache_clear()
            dataset = Scenes('a.tif', cache='../cache')
            images.append(dataset[Patch(0, 0, 0, PATCH)]['image'])
        assert not images[0].equal(images[1])
        assert {path.name for path in tmp_path.iterdir()} == {'cache', 'x', 'y'}

    @pytest.mark.parametrize(
        ('path', 'stamped'),
        [
            ('/vsizip/{{{0}}}/b.tif', True),
            ('/vsigzip/{0}', True),
            ('zip://{0}!b.tif', True),
            ('file://{0}', True),
            ('/vsicurl/https://example.com{0}x', False),
            ('s3://bucket/a.tif', False),
        ],
    )
    def test_paths_of_gdal(self, path: str, stamped: bool, tmp_path: Path) -> None:
        file = tmp_path / 'a.bin'
        file.write_bytes(b'1')
        before = cache.take_stamp(path.format(file))
        file.write_bytes(b'12')
        assert (cache.take_stamp(path.format(file)) != before) is stamped
        assert before is not None

    def test_memory_is_not_shared(self) -> None:
        assert cache.take_stamp('/vsimem/a.tif') is None
        assert cache.take_stamp('/vsizip//vsimem/a.zip/a.tif') is None


class TestFolder:
    def scene(self, folder: Path) -> Path:
        return write_scene(folder / 'data' / 'a.tif', size=SIZE)

    @pytest.mark.parametrize('name', ['photo.jpg', TAG])
    def test_something_elses(self, name: str, tmp_path: Path) -> None:
        (tmp_path / 'mine').mkdir()
        (tmp_path / 'mine' / name).write_bytes(cache.TAG_TEXT[:43] + b'\n# cargo')
        with pytest.raises(ValueError, match=rf'cache=.*mine.*{name}.*an empty folder'):
            Scenes(self.scene(tmp_path), cache=str(tmp_path / 'mine'))
        assert [path.name for path in (tmp_path / 'mine').iterdir()] == [name]

    @pytest.mark.parametrize('name', ['file', 'file/below'])
    def test_file(self, name: str, tmp_path: Path) -> None:
        (tmp_path / 'file').write_text('mine')
        with pytest.raises(ValueError, match=rf'cache=.*{name}.* is a file'):
            Scenes(self.scene(tmp_path), cache=str(tmp_path / name))
        assert (tmp_path / 'file').read_text() == 'mine'

    @pytest.mark.parametrize('name', ['', 's3://bucket', '/vsimem/x'])
    def test_no_local_folder(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=rf"cache='{name}' is no local folder"):
            Scenes(self.scene(tmp_path), cache=name)

    def test_folder_that_cannot_be_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, 'mkdir', fail)
        with pytest.raises(OSError, match=r'cache=.*new.*cannot be made: Permission'):
            BlockCache(str(tmp_path / 'new'))

    def test_deleted_at_any_time(self, tmp_path: Path) -> None:
        path = self.scene(tmp_path)
        dataset, folder = Scenes(path, cache=str(tmp_path / 'c')), tmp_path / 'c'
        for _ in range(2):
            assert_same(dataset, Scenes(path))
            assert blocks(folder)
            shutil.rmtree(folder)
        assert_same(dataset, Scenes(path))
        BlockCache(str(folder))  # it has its tag again

    def test_damaged_blocks_are_written_anew(self, tmp_path: Path) -> None:
        path, folder = self.scene(tmp_path), tmp_path / 'cache'
        assert_same(Scenes(path, cache=str(folder)), Scenes(path))
        sizes = {block: block.stat().st_size for block in blocks(folder)}
        for block, size in sizes.items():
            os.truncate(block, size // 2)
        assert_same(Scenes(path, cache=str(folder)), Scenes(path))
        assert {block: block.stat().st_size for block in blocks(folder)} == sizes

    def test_leftovers_are_removed_when_they_are_old(self, tmp_path: Path) -> None:
        BlockCache(str(tmp_path / 'cache'))
        new, old = (tmp_path / 'cache' / f'{UNFINISHED}{i}' for i in range(2))
        new.touch()
        old.touch()
        os.utime(old, (0, 0))
        BlockCache(str(tmp_path / 'cache'))
        assert new.exists()
        assert not old.exists()


class TestDisk:
    def scenes(self, folder: Path) -> tuple[Scenes, Scenes]:
        path = write_scene(folder / 'a.tif', size=SIZE)
        return Scenes(path, cache=str(folder / 'cache')), Scenes(path)

    @pytest.mark.parametrize('step', ['write', 'fsync'])
    def test_full(
        self, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It warns once, keeps what is whole, and reads all the same."""
        cached, plain = self.scenes(tmp_path)
        fsync, calls = os.fsync, []

        def fail(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) > 3:  # half of the fourth block
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(descriptor)

        if step == 'fsync':
            monkeypatch.setattr(os, 'fsync', fail)
        else:  # a device that is full, for the fourth block
            opened = Path.open

            def full(self: Path, mode: str = 'r', *args: Any, **kwargs: Any) -> Any:
                if self.name.startswith(UNFINISHED) and mode == 'xb':
                    calls.append(0)
                    if len(calls) > 3:
                        self.symlink_to('/dev/full')
                        mode = 'wb'
                return opened(self, mode, *args, **kwargs)

            monkeypatch.setattr(Path, 'open', full)
        with pytest.warns(UserWarning, match=r'cache=.*No space left') as caught:
            assert_same(cached, plain)
        assert len(caught) == 1
        assert len(calls) == 4
        assert len(blocks(tmp_path / 'cache')) == 3
        assert not list((tmp_path / 'cache').glob(f'{UNFINISHED}*'))
        monkeypatch.undo()
        monkeypatch.setattr(cache, 'BLOCK', 64)
        assert_same(Scenes(plain.paths, cache=str(tmp_path / 'cache')), plain)

    def test_room_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that checkpoints find their place."""
        cached, plain = self.scenes(tmp_path)
        monkeypatch.setattr(cache, 'RESERVE', 2**62)
        monkeypatch.setattr(cache, 'RESERVED_SHARE', 1.0)
        with pytest.warns(UserWarning, match=r'cache=.*GiB are left for others'):
            assert_same(cached, plain)
        assert not blocks(tmp_path / 'cache')

    def test_full_from_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, 'write_bytes', fail)
        with pytest.warns(UserWarning, match=r'cache=.*No space left'):
            cached, plain = self.scenes(tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert_same(cached, plain)


def fill(path: Path, folder: Path) -> None:
    """Read all patches, as another process does."""
    assert_same(Scenes(path, cache=str(folder)), Scenes(path))


def stop_halfway(path: Path, folder: Path) -> None:
    """Stop when half of a block is written, and wait to be killed."""

    def half(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = half
    fill(path, folder)


class TestProcesses:
    context = multiprocessing.get_context('fork')

    def test_together(self, tmp_path: Path) -> None:
        path, folder = write_scene(tmp_path / 'a.tif', size=400), tmp_path / 'cache'
        processes = [
            self.context.Process(target=fill, args=(path, folder)) for _ in range(4)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        assert not list(folder.glob(f'{UNFINISHED}*'))
        assert_same(Scenes(path, cache=str(folder)), Scenes(path))

    def test_killed_while_writing(self, tmp_path: Path) -> None:
        """A block has its name only once it is whole."""
        path, folder = write_scene(tmp_path / 'a.tif', size=SIZE), tmp_path / 'cache'
        process = self.context.Process(target=stop_halfway, args=(path, folder))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert list(folder.glob(f'{UNFINISHED}*'))
        assert not blocks(folder)
        fill(path, folder)
        assert blocks(folder)
