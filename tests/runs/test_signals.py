# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A run that is asked to end ends in order, and goes on bit for bit."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from tests.data.geotiff.data import generate
from tests.runs.interrupted_run import Signal, run
from tests.runs.test_interruption import assert_equal, final_state
from torchgeo_cmid.runs.signals import IgnoreSigterm

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scenes')
    generate(folder, bands=3, size=192)
    return folder


def saved_in(folder: Path) -> Path:
    (path,) = (folder / 'checkpoints').glob('sigterm-*.ckpt')
    return path


def end_of(folder: Path) -> dict[str, Any]:
    """The end, whatever the number of its steps."""
    (*_, last) = sorted((folder / 'checkpoints').glob('last*.ckpt'))
    checkpoint = torch.load(last, weights_only=True)
    names = ('state_dict', 'optimizer_states', 'lr_schedulers', 'global_step')
    return {name: checkpoint[name] for name in names}


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize(
    ('moment', 'settings'),
    [
        ('batch 1', {}),
        ('batch 0', {'accumulate_grad_batches': 2}),
        ('batch 1', {'accumulate_grad_batches': 2}),
        ('batch 2', {'accumulate_grad_batches': 3}),
        ('validation', {}),
        ('validation', {'val_check_interval': 2, 'accumulate_grad_batches': 4}),
    ],
)
def test_ends_and_goes_on(
    moment: str, settings: dict[str, Any], number: int, scenes: Path, tmp_path: Path
) -> None:
    """Also between the batches of a step, whose gradients were lost, and validating."""
    run(scenes, tmp_path / 'whole', **settings)
    with pytest.raises(SIGTERMException):
        run(scenes, tmp_path / 'part', signals=Signal(moment, number), **settings)
    saved = saved_in(tmp_path / 'part')
    whole = end_of(tmp_path / 'whole')
    content = torch.load(saved, weights_only=True)
    assert content['global_step'] <= whole['global_step']
    run(scenes, tmp_path / 'again', saved, **settings)
    assert_equal(end_of(tmp_path / 'again'), whole)


def test_before_the_first_step(scenes: Path, tmp_path: Path) -> None:
    """At once, and nothing is left that the next start could trip over."""
    start = time.monotonic()
    with pytest.raises((SystemExit, SIGTERMException)):
        run(scenes, tmp_path, signals=Signal('before', signal.SIGTERM))
    assert time.monotonic() - start < 60
    assert not list(tmp_path.rglob('*.ckpt'))
    run(scenes, tmp_path)
    run(scenes, tmp_path / 'fresh')
    assert_equal(final_state(tmp_path), final_state(tmp_path / 'fresh'))


@pytest.mark.parametrize('workers', [0, 2])
def test_whole_group(workers: int, scenes: Path, tmp_path: Path) -> None:
    """As schedulers send it: workers died of it, and nothing was saved."""
    process = subprocess.Popen(
        [
            sys.executable,
            '-m',
            'tests.runs.interrupted_run',
            scenes,
            tmp_path,
            f'--workers={workers}',
        ],
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while not (tmp_path / 'checkpoints' / 'step=3.ckpt').exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)
    run(scenes, tmp_path / 'again', saved_in(tmp_path))
    run(scenes, tmp_path / 'whole')
    assert_equal(final_state(tmp_path / 'again'), final_state(tmp_path / 'whole'))


class Start:
    """A *worker_init_fn* of a user's."""

    def __call__(self, worker: int) -> None:
        """Leave a mark."""
        os.environ['STARTED'] = str(worker)


class Environment(torch.utils.data.Dataset[str]):
    """What a worker was started with, and whether it ignores the signal."""

    def __len__(self) -> int:
        """One."""
        return 1

    def __getitem__(self, index: int) -> str:
        """Tell."""
        ignored = signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        return f'{os.environ.get("STARTED")} {ignored}'


def test_users_own_function_is_kept() -> None:
    loader = DataLoader(
        Environment(), num_workers=1, worker_init_fn=IgnoreSigterm(Start())
    )
    assert next(iter(loader)) == ['0 True']


def train_one_of_two(rank: int, port: int, scenes: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
        'WORLD_SIZE': '2',
        'NODE_RANK': '0',
        'LOCAL_RANK': str(rank),
    }
    run(
        scenes,
        folder,
        signals=Signal('batch 0', signal.SIGTERM, rank=1),
        strategy='ddp',
        devices=2,
        num_sanity_val_steps=0,
    )


def test_one_of_two_processes(scenes: Path, tmp_path: Path) -> None:
    """Both hung: one had left the step that the other was in."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = mp.spawn(train_one_of_two, (port, scenes, tmp_path), nprocs=2, join=False)
    end = time.monotonic() + 120
    while not context.join(timeout=1):
        assert time.monotonic() < end
    content = torch.load(saved_in(tmp_path), weights_only=True)
    assert content['global_step'] == 3  # two steps an epoch, and that of the signal
