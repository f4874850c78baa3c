# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A run that was stopped ends bit for bit where one ends that was not."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileOpener
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torchgeo.main import main

from tests.data.geotiff.data import generate
from tests.runs.interrupted_run import STEPS, quiet_trainer, run
from torchgeo_cmid.tasks import CMID


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scenes')
    generate(folder, bands=3, size=192)
    return folder


@pytest.fixture(scope='module')
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp('whole')
    run(scenes, folder)
    return folder


def final_state(folder: Path, name: str = 'last') -> dict[str, Any]:
    """Everything a run depends on, at its end."""
    path = folder / 'checkpoints' / f'{name}.ckpt'
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint['global_step'] == STEPS
    return {
        name: checkpoint[name]
        for name in ('state_dict', 'optimizer_states', 'lr_schedulers', 'seed')
    }


def assert_equal(actual: Any, expected: Any, path: str = '') -> None:
    """Compare nested values bit for bit."""
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), path
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for name in expected:
            assert_equal(actual[name], expected[name], f'{path}.{name}')
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), path
        for i, value in enumerate(expected):
            assert_equal(actual[i], value, f'{path}.{i}')
    else:
        assert actual == expected, path


class TestResume:
    @pytest.mark.parametrize('step', [1, 3, 4, 6])  # an epoch has four
    def test_from_every_step(
        self, step: int, scenes: Path, whole: Path, tmp_path: Path
    ) -> None:
        """Weights, teacher, queue, centre, optimizer and schedules are the same."""
        run(scenes, tmp_path, whole / 'checkpoints' / f'step={step}.ckpt')
        assert_equal(final_state(tmp_path), final_state(whole))

    def test_with_workers(self, scenes: Path, whole: Path, tmp_path: Path) -> None:
        """Workers load ahead: what counts is what was trained on."""
        run(scenes, tmp_path / 'a', workers=2)
        assert_equal(final_state(tmp_path / 'a'), final_state(whole))
        run(scenes, tmp_path / 'b', tmp_path / 'a/checkpoints/step=2.ckpt', workers=2)
        assert_equal(final_state(tmp_path / 'b'), final_state(whole))

    def test_place_is_not_read_twice(self, scenes: Path, whole: Path) -> None:
        """The checkpoint tells the place in the epoch."""
        path = whole / 'checkpoints' / 'step=6.ckpt'
        state = torch.load(path, weights_only=True)['RasterFolderDataModule']
        assert state['place'] == {'epoch': 1, 'batches': 2}


def start(scenes: Path, folder: Path, step: int) -> 'subprocess.Popen[str]':
    """Start a run, and wait until it has saved a step."""
    process = subprocess.Popen(
        [sys.executable, '-m', 'tests.runs.interrupted_run', scenes, folder],
        stderr=subprocess.PIPE,
        text=True,
    )
    saved = folder / 'checkpoints' / f'step={step}.ckpt'
    end = time.monotonic() + 120
    while not saved.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert saved.exists()
    return process


def test_kill(scenes: Path, whole: Path, tmp_path: Path) -> None:
    """Killed at a random moment, it goes on from its last checkpoint."""
    process = start(scenes, tmp_path, step=random.randrange(2, STEPS - 2))
    time.sleep(0.4 * random.random())
    process.kill()
    process.wait()
    run(scenes, tmp_path, tmp_path / 'checkpoints' / 'last.ckpt')
    names = sorted(path.name for path in (tmp_path / 'checkpoints').iterdir())
    last = [name.removesuffix('.ckpt') for name in names if name.startswith('last')]
    assert_equal(final_state(tmp_path, last[-1]), final_state(whole))


def test_sigterm(scenes: Path, whole: Path, tmp_path: Path) -> None:
    """It saves and stops, within a step, and goes on from there."""
    process = start(scenes, tmp_path, step=3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    (saved,) = (tmp_path / 'checkpoints').glob('sigterm-*.ckpt')
    assert f'go on with --ckpt_path {saved}' in said
    assert torch.load(saved, weights_only=True)['global_step'] < STEPS
    run(scenes, tmp_path / 'again', saved)
    assert_equal(final_state(tmp_path / 'again'), final_state(whole))


class TestFiles:
    def test_full_disk(
        self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One clear error; what was written before is untouched, nothing half."""
        write = LocalFileOpener.write

        def fail(self: Any, data: bytes) -> int:
            if 'step=4' in self.path:
                write(self, data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(write(self, data))

        monkeypatch.setattr(LocalFileOpener, 'write', fail)
        with pytest.raises(
            OSError, match=r'No space left.*not written.*step=4'
        ) as error:
            run(scenes, tmp_path)
        assert error.value.errno == errno.ENOSPC
        names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
        assert names == {'step=1.ckpt', 'step=2.ckpt', 'step=3.ckpt', 'last.ckpt'}
        last = torch.load(tmp_path / 'checkpoints' / 'last.ckpt', weights_only=True)
        assert last['global_step'] == 3

    def test_killed_while_writing(
        self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A checkpoint gets its name only once it is whole; until then the old is."""
        write, sizes = LocalFileOpener.write, []

        def look(self: Any, data: bytes) -> int:
            written = int(write(self, data))
            path = Path(self.path)
            sizes.append((path.name, path.stat().st_size if path.exists() else None))
            return written

        monkeypatch.setattr(LocalFileOpener, 'write', look)
        run(scenes, tmp_path, limit_train_batches=2)
        last = [size for name, size in sizes if name == 'last.ckpt']
        assert last[0] is None
        assert all(size is not None and size > 1e6 for size in last[1:])
        assert all(size is None for name, size in sizes if name != 'last.ckpt')

    def arguments(self, scenes: Path, folder: Path) -> list[str]:
        return [
            'fit',
            '--model=cmid',
            '--model.model=test_resnet',
            '--model.size=64',
            '--model.queue_size=4',
            '--model.hidden_dim=8',
            '--model.num_prototypes=8',
            '--data=RasterFolderDataModule',
            f'--data.paths={scenes}',
            '--data.patch_size=64',
            '--data.batch_size=2',
            '--data.length=2',
            '--trainer.accelerator=cpu',
            '--trainer.max_epochs=1',
            '--trainer.logger=false',
            '--trainer.enable_progress_bar=false',
            f'--trainer.default_root_dir={folder}',
        ]

    def test_old_run_is_not_overwritten(
        self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """TorchGeo's command overwrites config.yaml, so it is not let that far."""
        arguments = self.arguments(scenes, tmp_path)
        main(arguments)
        before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
        assert tmp_path / 'config.yaml' in before
        with pytest.raises(FileExistsError, match=r'config\.yaml.*earlier run'):
            main([*arguments, '--seed_everything=5'])
        after = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
        assert after == before
        monkeypatch.setenv('TORCHGEO_CMID_OVERWRITE', '1')
        main([*arguments, '--seed_everything=5'])

    def test_users_own_files(self, scenes: Path, tmp_path: Path) -> None:
        (tmp_path / 'config.yaml').write_text('mine')
        with pytest.raises(FileExistsError, match=r'config\.yaml'):
            main(self.arguments(scenes, tmp_path))
        assert (tmp_path / 'config.yaml').read_text() == 'mine'


def test_stock_modules_resume_at_an_epoch(tmp_path: Path) -> None:
    """With a stock loader, views and masks follow from the seed, and so does all else.

    Its order of patches does not: that is TorchGeo's, and drawn anew.
    """

    def fit(folder: Path, resume: Path | None = None) -> Trainer:
        generator = torch.Generator().manual_seed(0)
        images = [
            {'image': torch.rand(3, 64, 64, generator=generator)} for _ in range(4)
        ]
        loader = torch.utils.data.DataLoader(images, batch_size=2)  # a fixed order
        torch.manual_seed(1)
        task = CMID(
            model='test_resnet',
            size=64,
            queue_size=4,
            hidden_dim=8,
            num_prototypes=8,
            lr=1,
        )
        each = ModelCheckpoint(folder / 'checkpoints', '{epoch}', save_top_k=-1)
        trainer = quiet_trainer(folder, max_epochs=3, callbacks=[each])
        trainer.fit(task, loader, ckpt_path=None if resume is None else str(resume))
        return trainer

    fit(tmp_path / 'whole')
    fit(tmp_path / 'again', tmp_path / 'whole/checkpoints/epoch=0.ckpt')
    states = [
        torch.load(tmp_path / name / 'checkpoints/epoch=2.ckpt', weights_only=True)
        for name in ('whole', 'again')
    ]
    assert_equal(states[1]['state_dict'], states[0]['state_dict'])
