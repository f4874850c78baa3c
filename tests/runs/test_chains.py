# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Whatever stops a run, however often, it ends bit for bit as one that was not."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from tests.data.geotiff.data import generate
from tests.runs.interrupted_run import quiet_trainer
from tests.runs.test_interruption import assert_equal
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.tasks import CMID

pytestmark = pytest.mark.slow

BATCHES, EPOCHS = 6, 3
#: How a run is set up; interruptions must not change where it ends.
SETTINGS: list[dict[str, Any]] = [
    {},
    {'accumulate_grad_batches': 2},
    {'val_check_interval': 2},
    {'accumulate_grad_batches': 3, 'val_check_interval': 3},
    {'accumulate_grad_batches': 4},  # of six: the last step of an epoch has two
    {'scheduling': {0: 1, 1: 3, 2: 2}},  # of Lightning's callback for it
]


class Killed(BaseException):
    """What nothing handles."""


class Kill(Callback):
    """Ends the run at a batch, or in the middle of writing a checkpoint."""

    def __init__(self, batches: int, moment: str) -> None:
        """Initialize a new Kill instance."""
        self.left = batches
        self.moment = moment

    def on_train_batch_start(self, *args: Any) -> None:
        self.die('start')

    def on_train_batch_end(self, *args: Any) -> None:
        self.left -= 1
        self.die('end')

    def die(self, moment: str) -> None:
        if self.left <= 0 and moment == self.moment:
            raise Killed


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scenes')
    generate(folder, bands=2, size=192)
    return folder


def fit(
    scenes: Path,
    folder: Path,
    settings: dict[str, Any],
    kill: Kill | None = None,
    every: int = 1,
) -> dict[str, Any]:
    """Train, from the last checkpoint if there is one, and give the end."""
    seed_everything(3, verbose=False)
    datamodule = RasterFolderDataModule(
        str(scenes), patch_size=64, batch_size=2, length=2 * BATCHES, val_split=0.2
    )
    task = CMID(
        model='test_vit',
        in_channels=2,
        size=64,
        queue_size=20,
        hidden_dim=16,
        num_prototypes=8,
        projection_dim=8,
        bottleneck_dim=8,
        lr=1e-3,
    )
    checkpoints = ModelCheckpoint(
        folder,
        filename='{step}-{epoch}',
        every_n_train_steps=every,
        save_top_k=-1,
        save_last=True,
        enable_version_counter=False,
    )
    flags = dict(settings)
    callbacks: list[Callback] = [checkpoints, *([kill] if kill else [])]
    if 'scheduling' in flags:
        callbacks.append(GradientAccumulationScheduler(flags.pop('scheduling')))
    trainer = quiet_trainer(folder, max_epochs=EPOCHS, callbacks=callbacks, **flags)
    last = folder / 'last.ckpt'
    trainer.fit(task, datamodule, ckpt_path=str(last) if last.exists() else None)
    return {
        'step': trainer.global_step,
        'state': task.state_dict(),
        'optimizer': trainer.optimizers[0].state_dict(),
        'val_loss': trainer.callback_metrics.get('val_loss'),
    }


@pytest.fixture(scope='module', params=range(len(SETTINGS)))
def whole(
    request: pytest.FixtureRequest,
    scenes: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings, and the end of a run that nothing stopped."""
    settings = SETTINGS[request.param]
    folder = tmp_path_factory.mktemp('whole')
    return settings, fit(scenes, folder, settings) | {'folder': folder}


@pytest.mark.parametrize('seed', range(6))
def test_chain(
    seed: int,
    scenes: Path,
    whole: tuple[dict[str, Any], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Chains of kills and resumes, drawn by seed.

    Regression: a second resume, from the middle of an epoch that had been resumed
    before, drew other views, numbered by Lightning from 0.
    """
    settings, expected = whole
    rng = np.random.default_rng([seed, SETTINGS.index(settings)])
    every = int(rng.integers(1, 3))
    save, kills = torch.save, 0
    for _ in range(int(rng.integers(2, 5))):
        moment = str(rng.choice(['start', 'end', 'write']))
        kill = Kill(int(rng.integers(1, 6)), moment)

        def dying(content: Any, file: Any, kill: Kill = kill) -> None:
            save(content, file)
            kill.die('write')

        with monkeypatch.context() as patch:
            patch.setattr(torch, 'save', dying)
            try:
                fit(scenes, tmp_path, settings, kill, every)
            except Killed:
                kills += 1
    end = fit(scenes, tmp_path, settings, every=every)
    assert kills
    assert_equal(end, {name: expected[name] for name in end})


def test_second_resume(
    scenes: Path, whole: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path
) -> None:
    """From the last step of an epoch, then from each checkpoint of the next.

    Regression: Lightning did not count the epoch in between, so that a third run took
    the batches of an accumulated step for others, and ended a step short.
    """
    settings, expected = whole
    last = max(expected['folder'].glob('*epoch=0.ckpt'), key=step_of)
    shutil.copy(last, tmp_path / 'last.ckpt')
    ends = [fit(scenes, tmp_path, settings)]
    found = sorted(tmp_path.glob('*epoch=1.ckpt'), key=step_of)
    assert found
    for number, path in enumerate(found):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(path, folder / 'last.ckpt')
        ends.append(fit(scenes, folder, settings))
    for end in ends:
        assert_equal(end, {name: expected[name] for name in end})


def step_of(path: Path) -> int:
    """Number of the step in the name of a checkpoint."""
    return int(path.name.partition('=')[2].partition('-')[0])
