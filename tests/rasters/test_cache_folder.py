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

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save

from tests.data.geotiff.data import write_scene
from tests.rasters.cached_scenes import SIZE, assert_same, blocks, sidecar
from torchgeo_cmid.datasets import Patch, Scenes, cache
from torchgeo_cmid.rasters.cache import TAG, UNFINISHED, BlockCache
from torchgeo_cmid.rasters.confined import ConfinedFolder


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

        monkeypatch.setattr(os, 'makedirs', fail)
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

    @pytest.mark.parametrize(
        'damage',
        ['pixels', 'valid', 'shape', 'header', 'bands', 'type', 'pipe', 'link'],
    )
    def test_blocks_that_do_not_fit_are_decoded_anew(
        self, damage: str, tmp_path: Path
    ) -> None:
        """Flips that leave the size alone, other numbers of bands, no files at all."""
        path, folder = sidecar(tmp_path / 'data')['paths'], tmp_path / 'cache'
        plain = Scenes(path)
        assert_same(Scenes(path, cache=str(folder)), plain)
        before = {block: block.read_bytes() for block in blocks(folder)}
        assert before
        for number, (block, content) in enumerate(before.items()):
            start = 8 + int.from_bytes(content[:8], 'little')
            arrays = load_file(block)
            height, width = arrays['valid'].shape
            changed = bytearray(content)
            if damage == 'pixels':
                changed[-3 if number % 2 else start + arrays['valid'].size + 40] ^= 1
            elif damage == 'valid':
                place = content.index(bytes(1), start)
                changed[place] ^= 1
            elif damage == 'shape':
                if height == width:
                    old = f'[3,{height},{width}]'.encode()
                    assert old in content
                    new = f'[6,{height},{width // 2}]'.encode()
                    changed = bytearray(content.replace(old, new.ljust(len(old))))
                else:
                    changed[20] ^= 255
            elif damage == 'header':
                changed[12] ^= 255
            elif damage == 'bands':
                arrays['pixels'] = np.ascontiguousarray(arrays['pixels'][[0, 0, 1, 2]])
                changed = bytearray(save(arrays, {'sum': cache._sum(arrays)}))
            elif damage == 'type':
                arrays['pixels'] = arrays['pixels'].view(np.int16)
                changed = bytearray(save(arrays, {'sum': cache._sum(arrays)}))
            elif damage == 'pipe':
                block.unlink()
                os.mkfifo(block)
                continue
            else:
                (tmp_path / f'{number}').write_bytes(content)
                block.unlink()
                block.symlink_to(tmp_path / f'{number}')
                continue
            block.write_bytes(changed)
        dataset = Scenes(path, cache=str(folder))
        assert_same(dataset, plain)
        assert set(blocks(folder)) == set(before)
        for block, content in before.items():
            assert not block.is_symlink()
            now, then = load_file(block), load(content)
            assert {k: v.tobytes() for k, v in now.items()} == {
                k: v.tobytes() for k, v in then.items()
            }

    def test_blocks_that_change_while_they_are_used(self, tmp_path: Path) -> None:
        path, folder = self.scene(tmp_path), tmp_path / 'cache'
        dataset, plain = Scenes(path, cache=str(folder)), Scenes(path)
        assert_same(dataset, plain)
        for block in blocks(folder):
            content = bytearray(block.read_bytes())
            content[-1] ^= 255
            block.write_bytes(content)
        assert_same(dataset, plain)

    @pytest.mark.parametrize('what', ['folder', 'above', 'blocks', 'records'])
    def test_nothing_is_written_through_a_link(self, what: str, tmp_path: Path) -> None:
        path, folder = self.scene(tmp_path), tmp_path / 'above' / 'cache'
        plain = Scenes(path)
        dataset = Scenes(path, cache=str(folder))
        dataset[Patch(0, 0, 0, 48)]
        elsewhere = tmp_path / 'elsewhere'
        elsewhere.mkdir()
        if what == 'folder':
            folder.rename(tmp_path / 'before')
            folder.symlink_to(elsewhere)
        elif what == 'above':
            folder.parent.rename(tmp_path / 'before')
            (elsewhere / 'cache').mkdir()
            folder.parent.symlink_to(elsewhere)
        else:
            for inner in folder.iterdir():
                if inner.is_dir() and (inner.name == 'records') == (what == 'records'):
                    inner.rename(tmp_path / inner.name)
                    inner.symlink_to(elsewhere)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert_same(dataset, plain)
            if what in ('blocks', 'records'):
                assert_same(
                    Scenes(path, bands=[2], cache=str(folder)), Scenes(path, [2])
                )
        assert [p.name for p in elsewhere.rglob('*')] == ['cache'] * (what == 'above')

    def test_a_link_that_is_named_is_followed(self, tmp_path: Path) -> None:
        (tmp_path / 'real').mkdir()
        (tmp_path / 'link').symlink_to(tmp_path / 'real')
        path = self.scene(tmp_path)
        assert_same(Scenes(path, cache=str(tmp_path / 'link')), Scenes(path))
        assert blocks(tmp_path / 'real')

    def test_another_folder_takes_its_place(self, tmp_path: Path) -> None:
        """One that holds something else is left alone."""
        path, folder = self.scene(tmp_path), tmp_path / 'cache'
        dataset, plain = Scenes(path, cache=str(folder)), Scenes(path)
        folder.rename(tmp_path / 'before')
        folder.mkdir()
        (folder / 'mine').touch()
        assert_same(dataset, plain)
        assert [path.name for path in folder.iterdir()] == ['mine']

    @pytest.mark.parametrize('name', [TAG, 'records'])
    def test_pipes_and_files_in_place_of_ours(self, name: str, tmp_path: Path) -> None:
        path, folder = self.scene(tmp_path), tmp_path / 'cache'
        Scenes(path, cache=str(folder))
        if name == TAG:
            (folder / TAG).unlink()
            os.mkfifo(folder / TAG)
            with pytest.raises(ValueError, match='holds something else'):
                Scenes(path, cache=str(folder))
            return
        for record in (folder / 'records').iterdir():
            record.unlink()
            os.mkfifo(record)
        assert_same(Scenes(path, cache=str(folder)), Scenes(path))


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
            opened = os.open

            def full(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
                if str(path).startswith(UNFINISHED):
                    calls.append(0)
                    if len(calls) > 3:
                        return opened('/dev/full', os.O_WRONLY)
                return opened(path, flags, *args, **kwargs)

            monkeypatch.setattr(os, 'open', full)
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
        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(ConfinedFolder, 'write', fail)
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
