# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Bad files give one clear error or are skipped; none hangs, crashes or runs code."""

import multiprocessing
import os
import re
import resource
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.data.geotiff.data import write_scene
from tests.data.hostile.data import BAD, ODD, RANDOM, TRAP
from torchgeo_cmid.datamodules import RasterFolderDataModule

#: Seconds that anything may take, and memory that it may add.
LIMIT = 30
MEMORY = 2 * 2**30

#: A user who owns nothing.
NOBODY = 65_534

pytestmark = pytest.mark.filterwarnings('ignore')


def load(folder: Path, paths: list[str], **arguments: Any) -> dict[str, Any]:
    """Read an epoch of patches as training does, and tell how it went."""
    module = RasterFolderDataModule(
        paths=paths,
        patch_size=16,
        length=24,
        batch_size=8,
        val_split=0.0,
        mean=[0.0],
        std=[1.0],
        **arguments,
    )
    os.chdir(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        try:
            module.setup('fit')
            batches = list(module.train_dataloader())
        except (OSError, ValueError) as error:
            return {'error': f'{type(error).__name__}: {error}'}
    assert all(batch['image'].isfinite().all() for batch in batches)
    return {
        'scenes': [scene.path for scene in module.scenes.scenes],
        'skipped': module.scenes.skipped,
        'valid': sum(batch['valid'].float().mean().item() for batch in batches) / 3,
        'warnings': [str(warning.message) for warning in caught],
    }


def apart(
    folder: Path, paths: list[str], anybody: bool = False, **arguments: Any
) -> dict[str, Any]:
    """Do so in a process of its own, which may not hang, crash or take all memory."""

    def target(pipe: Connection) -> None:
        if anybody and os.getuid() == 0:  # whom no permission stops
            os.setuid(NOBODY)
        used = int(Path('/proc/self/statm').read_text().split()[0])
        limit = used * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        pipe.send(load(folder, paths, **arguments))

    context = multiprocessing.get_context('fork')
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(there,))
    process.start()
    there.close()
    try:
        assert here.poll(LIMIT), 'hangs'
        result: dict[str, Any] = here.recv()
    except EOFError:
        process.join()
        pytest.fail(f'crashed with exit code {process.exitcode}')
    finally:
        process.kill()
        process.join()
    assert not (folder / TRAP).exists(), 'code in a file was run'
    return result


@pytest.mark.parametrize('name', BAD)
def test_one_clear_error(tmp_path: Path, name: str) -> None:
    case = BAD[name]
    good = write_scene(tmp_path / 'good.tif', bands=1)
    bad = tmp_path / case.name
    case.write(bad)
    bands = case.bands and list(case.bands)
    result = apart(tmp_path, [str(tmp_path), str(bad)], bands=bands)
    assert 'error' in result, result
    shown = repr(str(bad))[1:-1]
    assert shown in result['error'] or str(bad) in result['error']
    assert re.search(case.message, result['error']), result['error']
    assert len(result['error']) < 600

    result = apart(
        tmp_path, [str(tmp_path), str(bad)], bands=bands, skip_bad_files=True
    )
    assert str(good) in result['scenes']
    if result['skipped']:
        assert list(result['skipped']) == [str(bad)]
        assert result['valid'] == 1
        assert any('1 bad scenes are skipped' in text for text in result['warnings'])
    else:
        assert result['valid'] < 1
        assert any('patch taken as fill' in text for text in result['warnings'])


@pytest.mark.parametrize('kind', ['file', 'folder'])
def test_no_permission_to_read(kind: str) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        good = write_scene(folder / 'good.tif', bands=1)
        bad = folder / 'bad' / 'bad.tif'
        write_scene(bad, bands=1)
        closed = bad if kind == 'file' else bad.parent
        closed.chmod(0)
        result = apart(folder, [name], anybody=True)
        assert re.search(
            f'{closed}.*Permission denied|Permission denied.*{closed}', result['error']
        )
        if kind == 'file':
            result = apart(folder, [name], anybody=True, skip_bad_files=True)
            assert result['scenes'] == [str(good)]
            assert list(result['skipped']) == [str(bad)]


@pytest.mark.parametrize('name', RANDOM)
def test_random_bytes(tmp_path: Path, name: str) -> None:
    RANDOM[name].write(tmp_path / 'bad.tif')
    result = apart(tmp_path, [str(tmp_path)], bands=[1])
    assert 'error' not in result or 'bad.tif' in result['error'], result


@pytest.mark.parametrize('name', ODD)
def test_odd_but_fine(tmp_path: Path, name: str) -> None:
    ODD[name](tmp_path / 'odd.tif')
    result = apart(tmp_path, [str(tmp_path)], bands=[1])
    assert 'error' not in result, result
    assert result['valid'] == 1
