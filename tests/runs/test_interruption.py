# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A run that was stopped ends bit for bit where one ends that was not."""

import csv
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchgeo.main import main

from tests.data.geotiff.data import generate
from tests.runs.interrupted_run import STEPS, quiet_trainer, run
from torchgeo_cmid.runs import interruption
from torchgeo_cmid.runs.interruption import clear_unfinished
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
        save = torch.save

        def fail(content: Any, file: Any) -> None:
            save(content, file)
            if 'step=4' in file.name:
                file.truncate(1000)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(torch, 'save', fail)
        with pytest.raises(
            OSError, match=r'No space left.*not written.*step=4'
        ) as error:
            run(scenes, tmp_path)
        assert error.value.errno == errno.ENOSPC
        names = {path.name for path in (tmp_path / 'checkpoints').iterdir()}
        assert names == {'step=1.ckpt', 'step=2.ckpt', 'step=3.ckpt', 'last.ckpt'}
        last = torch.load(tmp_path / 'checkpoints' / 'last.ckpt', weights_only=True)
        assert last['global_step'] == 3

    def test_written_beside_its_name_flushed_and_renamed(
        self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Regression: written in TMPDIR, and copied where that is another disk."""
        done: list[tuple[str, str]] = []
        fsync, replace = os.fsync, Path.replace

        def flushed(descriptor: int) -> None:
            done.append(('fsync', Path(f'/proc/self/fd/{descriptor}').readlink().name))
            fsync(descriptor)

        def renamed(path: Path, target: Path) -> Path:
            assert path.parent == target.parent
            assert torch.load(path, weights_only=True)  # whole before it gets its name
            done.append(('rename', target.name))
            return replace(path, target)

        monkeypatch.setattr(os, 'fsync', flushed)
        monkeypatch.setattr(Path, 'replace', renamed)
        monkeypatch.setenv('TMPDIR', '/nowhere')
        run(scenes, tmp_path, limit_train_batches=1)
        names = [name for kind, name in done if kind == 'rename']
        assert names[:2] == ['step=1.ckpt', 'last.ckpt']
        for i, name in enumerate(names):
            written, target, folder = done[3 * i : 3 * i + 3]
            assert written[0] == folder[0] == 'fsync'
            assert written[1].startswith(f'.unfinished-{name}')
            assert target == ('rename', name)
            assert folder[1] == 'checkpoints'

    @pytest.mark.parametrize('moment', ['write', 'flush', 'rename'])
    def test_killed_while_writing(
        self, moment: str, scenes: Path, whole: Path, tmp_path: Path
    ) -> None:
        """The last good file is whole, what is half has no name, and goes at once."""
        killed = subprocess.run(
            [
                sys.executable,
                '-m',
                'tests.runs.interrupted_run',
                scenes,
                tmp_path,
                f'--die-in={moment}',
            ],
            check=False,
            capture_output=True,
        )
        assert killed.returncode == -signal.SIGKILL
        folder = tmp_path / 'checkpoints'
        left = [path for path in folder.iterdir() if path.name.startswith('.')]
        assert len(left) == 1
        for path in folder.glob('*.ckpt'):
            if path not in left:
                assert torch.load(path, weights_only=True)['global_step']
        run(scenes, tmp_path, folder / 'last.ckpt')
        assert not [path for path in folder.iterdir() if path.name.startswith('.')]
        (*_, last) = sorted(folder.glob('last*.ckpt'))
        assert_equal(final_state(tmp_path, last.stem), final_state(whole))

    def test_what_others_write_stays(self, tmp_path: Path) -> None:
        host = socket.gethostname()
        alive, elsewhere, ended = (
            tmp_path / f'.unfinished-last.ckpt-{name}'
            for name in (f'{host}-{os.getpid()}', f'other{host}-1', f'{host}-4194305')
        )
        elsewhere = tmp_path / '.unfinished-last.ckpt-another-4194305'
        for path in (alive, elsewhere, ended):
            path.touch()
        clear_unfinished(tmp_path)
        assert alive.exists()
        assert elsewhere.exists()
        assert not ended.exists()

    def test_weights_that_are_not_finite(
        self, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Regression: they replaced the last good file."""
        update = CMID.update_teacher

        def breaks(task: CMID, momentum: float) -> None:
            update(task, momentum)
            if task.trainer.global_step == 2:  # in the third
                with torch.no_grad():
                    next(task.student.backbone.parameters()).fill_(torch.nan)

        monkeypatch.setattr(CMID, 'update_teacher', breaks)
        with pytest.raises(
            ValueError,
            match=r'student\.backbone\.\S+ is not finite at step 3: .*untouched',
        ):
            run(scenes, tmp_path)
        last = torch.load(tmp_path / 'checkpoints' / 'last.ckpt', weights_only=True)
        assert last['global_step'] == 2

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


class TestEarlierFiles:
    """Regression: validating rewrote config.yaml, resuming lost rows of metrics.csv."""

    def command(self, scenes: Path, folder: Path, what: str = 'fit') -> list[str]:
        arguments = TestFiles().arguments(scenes, folder)
        kept = [a for a in arguments if not a.startswith('--trainer.logger')][1:]
        return [
            what,
            *kept,
            '--data.length=4',
            '--trainer.logger=CSVLogger',
            f'--trainer.logger.save_dir={folder}',
            '--trainer.logger.name=run',
            '--trainer.logger.version=0',
            '--trainer.log_every_n_steps=1',
        ]

    def rows(self, folder: Path) -> list[dict[str, str]]:
        with (folder / 'run' / 'version_0' / 'metrics.csv').open() as file:
            return list(csv.DictReader(file))

    def test_resume(self, scenes: Path, tmp_path: Path) -> None:
        main([*self.command(scenes, tmp_path / 'whole'), '--trainer.max_epochs=3'])
        expected = self.rows(tmp_path / 'whole')
        folder = tmp_path / 'parts'
        main([*self.command(scenes, folder), '--trainer.max_epochs=2'])
        config = (folder / 'run/version_0/config.yaml').read_bytes()
        started = self.rows(folder)
        first = next((folder / 'run/version_0/checkpoints').glob('*.ckpt'))
        for epochs in (2, 3):  # from its end, too: nothing is trained
            resume = [f'--trainer.max_epochs={epochs}', f'--ckpt_path={first}']
            main([*self.command(scenes, folder), *resume])
        found = self.rows(folder)
        assert [row['step'] for row in found] == [row['step'] for row in expected]
        for row, before in zip(found, started, strict=False):
            assert {name: row[name] for name in before} == before
        assert not list(folder.rglob('.unfinished-*'))
        assert (folder / 'run/version_0/config.yaml').read_bytes() == config
        assert (folder / 'run/version_0/config-1.yaml').exists()

    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Regression: rows that could not be written were left half beside the file."""
        path = tmp_path / 'metrics.csv'
        path.write_text('step\n1\n')

        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, 'fsync', fail)
        with pytest.raises(OSError, match='No space left'):
            interruption._write_rows(path, [{'step': '2'}], [{'step': '2'}])
        assert path.read_text() == 'step\n1\n'
        assert [each.name for each in tmp_path.iterdir()] == ['metrics.csv']

    @pytest.mark.parametrize('what', ['validate', 'test'])
    def test_evaluation(self, what: str, scenes: Path, tmp_path: Path) -> None:
        main(self.command(scenes, tmp_path))
        run_folder = tmp_path / 'run' / 'version_0'
        before = {p: p.read_bytes() for p in run_folder.rglob('*') if p.is_file()}
        rows = self.rows(tmp_path)
        command = self.command(scenes, tmp_path, what)
        command = [a for a in command if not a.startswith('--trainer.max_epochs')]
        checkpoint = next(run_folder.rglob('*.ckpt'))
        if what == 'test':  # our data module has no test part
            with pytest.raises(MisconfigurationException):
                main([*command, f'--ckpt_path={checkpoint}', '--model.size=64'])
        else:
            main([*command, f'--ckpt_path={checkpoint}'])
        for path, content in before.items():
            if path.name != 'metrics.csv':
                assert path.read_bytes() == content, path
        assert self.rows(tmp_path)[: len(rows)] == rows


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
