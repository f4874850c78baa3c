# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A cache is shared, filled, deleted and damaged, and no run breaks or loses by it."""

import errno
import multiprocessing
import os
import shutil
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest

from tests.data.geotiff.data import write_scene
from tests.rasters.cached_scenes import SIZE, assert_same, blocks
from torchgeo_cmid.datasets import Scenes, cache
from torchgeo_cmid.rasters.cache import TAG, UNFINISHED, BlockCache


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have small scenes hold many blocks, and any disk enough room."""
    monkeypatch.setattr(cache, 'BLOCK', 64)
    monkeypatch.setattr(cache, 'RESERVE', 0)


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
        assert sum('cache=' in str(warning.message) for warning in caught) == 1
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
            warnings.simplefilter('error', UserWarning)
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
