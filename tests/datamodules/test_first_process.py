# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The first process looks at the files; the others get what it found."""

import pickle
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.data.geotiff.data import generate
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.datamodules import folder as base
from torchgeo_cmid.datasets import Scenes
from torchgeo_cmid.rasters import raster, scene
from torchgeo_cmid.rasters.source import Source

SIZE = 2
SEEDS = [7, 8]


class Strategy:
    """As Lightning's strategies do it."""

    def broadcast(self, value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]


def set_up(rank: int, folder: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Set a module up in one of two processes, and tell what it did."""
    counts = {'opened': 0, 'decoded': 0, 'searched': 0}

    def counted(name: str, function: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return wrapper

    patch = pytest.MonkeyPatch()
    patch.setattr(scene, 'check_raster', counted('opened', raster.check_raster))
    patch.setattr(Source, 'load', counted('decoded', Source.load))
    patch.setattr(Source, 'valid', counted('searched', Source.valid))
    slow = arguments.pop('slow', 0)
    if slow:  # longer than the first process keeps the others waiting at a time
        patch.setattr(base, 'WAIT', slow / 10)
        make = Scenes.__init__

        def late(*args: Any, **kwargs: Any) -> None:
            time.sleep(slow)
            make(*args, **kwargs)

        patch.setattr(Scenes, '__init__', late)
    torch.manual_seed(SEEDS[rank])
    module = RasterFolderDataModule(
        str(folder), patch_size=16, length=16, batch_size=4, **arguments
    )
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=SIZE,
        global_rank=rank,
        is_global_zero=rank == 0,
        strategy=Strategy(),
        log_dir=None,
    )
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            module.setup('fit')
            module.train_dataloader()
    except (OSError, RuntimeError, ValueError) as error:
        return {'error': f'{type(error).__name__}: {error}'}
    finally:
        patch.undo()
    assert module.normalization is not None
    return {
        'counts': dict(counts),
        'scenes': module.scenes.scenes,
        'bands': module.scenes.bands,
        'skipped': module.scenes.skipped,
        'footprints': module.scenes.index.geometry.to_wkb().tolist(),
        'coverage': [
            None if s.coverage is None else s.coverage.sums.tolist()
            for s in module.scenes.scenes
        ],
        'seed': module.seed,
        'drawn': list(module.train_sampler),
        'val': list(module.val_sampler),
        'mean': list(module.normalization.mean),
        'unit': module.unit,
        'image': module.scenes[module.train_sampler.draw(1, 0)[0]]['image'].numpy(),
        'warnings': [str(warning.message) for warning in caught],
    }


def work(rank: int, root: str, cases: list[tuple[str, dict[str, Any]]]) -> None:
    """Be one of two processes that set up module after module."""
    dist.init_process_group(
        'gloo', init_method=f'file://{root}/store', rank=rank, world_size=SIZE
    )
    results = [set_up(rank, Path(root, name), dict(a)) for name, a in cases]
    Path(root, f'{rank}.pickle').write_bytes(pickle.dumps(results))
    dist.destroy_process_group()


CASES: list[tuple[str, dict[str, Any]]] = [
    ('scenes', {'min_valid': 0.5, 'slow': 1.0}),
    ('scenes', {'min_valid': 0.5, 'cache': '{root}/cache'}),
    ('scenes', {'min_valid': 0.5, 'cache': '{root}/cache'}),
    ('bad', {}),
    ('bad', {'skip_bad_files': True}),
    ('missing', {}),
    ('empty', {}),
]


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """What two processes found, case by case."""
    root = tmp_path_factory.mktemp('first')
    generate(root / 'scenes', 3, size=(96, 64), fill=0.2, nodata=0)
    generate(root / 'bad', 2, size=(96, 64), dtype='uint8')
    (root / 'bad' / 'z.tif').write_bytes(b'no raster')
    generate(root / 'empty', 1, fill=1.0, nodata=0)
    cases = [
        (name, {k: v.format(root=root) if k == 'cache' else v for k, v in a.items()})
        for name, a in CASES
    ]
    mp.spawn(work, (str(root), cases), nprocs=SIZE)
    ranks = [pickle.loads((root / f'{i}.pickle').read_bytes()) for i in range(SIZE)]
    return [list(pair) for pair in zip(*ranks, strict=True)]


@pytest.mark.parametrize('case', [0, 1, 2, 4])
def test_all_have_the_same(results: list[list[dict[str, Any]]], case: int) -> None:
    first, second = results[case]
    for key in ('scenes', 'bands', 'skipped', 'footprints', 'coverage', 'mean', 'unit'):
        assert first[key] == second[key], key
    np.testing.assert_array_equal(first['image'], second['image'])
    assert first['seed'] == second['seed'] == SEEDS[0]
    assert first['val'] == second['val']
    assert len(first['drawn']) == len(second['drawn']) == 8
    assert not set(first['drawn']) & set(second['drawn'])  # shares of one draw


@pytest.mark.parametrize('case', [0, 1, 4])
def test_one_looks(results: list[list[dict[str, Any]]], case: int) -> None:
    first, second = (result['counts'] for result in results[case])
    assert first['opened'] == 3
    assert first['decoded'] > 0
    assert second == {'opened': 0, 'decoded': 0, 'searched': 0}
    assert (first['searched'] > 0) == (case < 2)


def test_nobody_looks_again_with_a_cache(results: list[list[dict[str, Any]]]) -> None:
    """Nor decodes a pixel: the statistics come from blocks."""
    for result in results[2]:
        assert result['counts'] == {'opened': 0, 'decoded': 0, 'searched': 0}
    assert all(coverage is not None for coverage in results[2][0]['coverage'])


@pytest.mark.parametrize(
    ('case', 'kind', 'message'),
    [
        (3, 'OSError', 'z.tif: not a readable raster'),
        (5, 'FileNotFoundError', 'no such file or folder'),
        (6, 'ValueError', 'no valid pixel'),
    ],
)
def test_an_error_is_everybodys(
    results: list[list[dict[str, Any]]], case: int, kind: str, message: str
) -> None:
    """Those that wait would wait for ever."""
    first, second = (result['error'] for result in results[case])
    assert first.startswith(f'{kind}: ')
    assert message in first
    assert second.startswith('RuntimeError: the first process failed: ')
    assert message in second


def test_one_warns(results: list[list[dict[str, Any]]]) -> None:
    first, second = (result['warnings'] for result in results[4])
    assert any('1 bad scenes are skipped' in text for text in first)
    assert second == []
    assert [result['unit'] for result in results[4]] == [255.0, 255.0]
