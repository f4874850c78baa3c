# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A backbone is judged while it trains, and the training does not notice."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torchgeo.datamodules import (
    EuroSAT100DataModule,
    EuroSATDataModule,
    UCMercedDataModule,
)
from torchgeo.tasks import BYOL, SimCLR

from tests.data.geotiff.data import write_scene
from tests.data.transfer.data import GENERATE
from tests.tasks.tiny import TINY
from tests.trainers import quiet_trainer
from torchgeo_cmid.callbacks import Evaluation
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.tasks import CMID


@pytest.fixture
def eurosat(tmp_path: Path) -> EuroSATDataModule:
    GENERATE['eurosat'](tmp_path / 'eurosat')
    return EuroSATDataModule(4, root=tmp_path / 'eurosat')


@pytest.fixture
def scenes(tmp_path: Path) -> RasterFolderDataModule:
    write_scene(tmp_path / 'scenes' / 'a.tif', bands=13, size=192, seed=0)
    return RasterFolderDataModule(
        str(tmp_path / 'scenes'),
        patch_size=64,
        batch_size=2,
        length=4,
        val_split=0.3,
        unit=10_000,
    )


def task(**kwargs: Any) -> CMID:
    seed_everything(1, verbose=False)
    given = {'in_channels': 13, 'warmup_epochs': 0, 'lr': 1e-2} | kwargs
    return CMID(model='test_resnet', **(TINY | given))


class Watch(Callback):
    """Keeps what is logged at the end of each epoch."""

    def __init__(self) -> None:
        """Initialize a new Watch instance."""
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: LightningModule) -> None:
        self.epochs.append(
            {name: float(value) for name, value in trainer.callback_metrics.items()}
        )


def test_figures(
    eurosat: EuroSATDataModule, scenes: RasterFolderDataModule, tmp_path: Path
) -> None:
    """Pre-trained on scenes, judged on EuroSAT; the last figures are logged again."""
    watch = Watch()
    best = ModelCheckpoint(tmp_path / 'best', monitor='val_knn', mode='max')
    callbacks = [Evaluation(eurosat, every_n_epochs=2), best, watch]
    trainer = quiet_trainer(
        tmp_path, max_epochs=4, callbacks=callbacks, enable_checkpointing=True
    )
    trainer.fit(task(), scenes)
    first, second, third, fourth = watch.epochs
    names = ('knn', 'knn5', 'linear', 'few_shot_1', 'correspondence', 'effective_rank')
    for kind in ('', 'teacher_', 'statistics_', 'initial_'):
        for name in names:
            assert f'val_{kind}{name}' in fourth
    own = [name for name in fourth if name.startswith('val_effective_rank')]
    assert first['val_effective_rank'] == first['val_initial_effective_rank']
    assert second['val_effective_rank'] == third['val_effective_rank']
    for name in own:
        assert second[name] != first[name]
    for name in ('val_statistics_knn', 'val_initial_effective_rank'):
        assert len({epoch[name] for epoch in watch.epochs}) == 1
    assert Path(best.best_model_path).exists()


def test_training_does_not_notice(
    eurosat: EuroSATDataModule, scenes: RasterFolderDataModule, tmp_path: Path
) -> None:
    """Weights are the same with and without, bit for bit."""
    ends = []
    for callbacks in ([], [Evaluation(eurosat)]):
        made = task()
        quiet_trainer(tmp_path, max_epochs=2, callbacks=callbacks).fit(made, scenes)
        ends.append(made.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_resumed(
    eurosat: EuroSATDataModule, scenes: RasterFolderDataModule, tmp_path: Path
) -> None:
    """The initial backbone is that before the first step, not that of the resume."""
    ends = []
    for stop in (3, 1):
        watch = Watch()
        save = ModelCheckpoint(tmp_path / str(stop), save_last=True)
        given = [Evaluation(eurosat, every_n_epochs=2), save, watch]
        trainer = quiet_trainer(
            tmp_path, max_epochs=3, callbacks=given, enable_checkpointing=True
        )
        if stop == 1:
            trainer.fit_loop.max_epochs = 1
            trainer.fit(task(momentum=0.9), scenes)
            trainer = quiet_trainer(
                tmp_path,
                max_epochs=3,
                callbacks=[Evaluation(eurosat, every_n_epochs=2), watch],
            )
            path = tmp_path / '1' / 'last.ckpt'
            trainer.fit(task(momentum=0.9), scenes, ckpt_path=path)
        else:
            trainer.fit(task(momentum=0.9), scenes)
        ends.append(watch.epochs[-1])
    for name in ('val_initial_knn', 'val_initial_effective_rank', 'val_statistics_knn'):
        assert ends[0][name] == ends[1][name]


CONFIG = """
trainer:
  enable_progress_bar: false
  callbacks:
  - class_path: torchgeo_cmid.callbacks.Evaluation
    init_args:
      datamodule:
        class_path: EuroSATDataModule
        init_args:
          batch_size: 4
        dict_kwargs:
          root: {root}
  - class_path: lightning.pytorch.callbacks.ModelCheckpoint
    init_args:
      monitor: val_knn
      mode: max
"""


@pytest.mark.slow
@pytest.mark.parametrize('devices', [1, 2])
def test_stock_command(devices: int, tmp_path: Path) -> None:
    """From a config, by one and by two processes; the best checkpoint is kept."""
    GENERATE['eurosat'](tmp_path / 'eurosat')
    write_scene(tmp_path / 'scenes' / 'a.tif', bands=13, size=192, seed=0)
    (tmp_path / 'judge.yaml').write_text(CONFIG.format(root=tmp_path / 'eurosat'))
    base = Path(__file__).parents[1] / 'conf' / 'raster_folder.yaml'
    command = [sys.executable, '-m', 'torchgeo', 'fit', '--config', str(base)]
    command += ['--config', 'judge.yaml', '--model.init_args.in_channels=13']
    command += [f'--data.init_args.paths={tmp_path / "scenes"}']
    command += ['--data.init_args.unit=10000', f'--trainer.devices={devices}']
    command += ['--trainer.strategy=ddp'] * (devices > 1)
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    (metrics,) = tmp_path.rglob('metrics.csv')
    with metrics.open() as file:
        found = [row['val_knn'] for row in csv.DictReader(file) if row['val_knn']]
    assert len(found) == 2
    (checkpoint,) = tmp_path.rglob('*.ckpt')
    command = [sys.executable, '-m', 'torchgeo', 'test', '--model=cmid']
    command += [f'--ckpt_path={checkpoint}', f'--trainer.devices={devices}']
    command += ['--trainer.accelerator=cpu', '--trainer.logger=false']
    command += ['--data=EuroSATDataModule', '--data.batch_size=4']
    command += [f'--data.dict_kwargs.root={tmp_path / "eurosat"}']
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count('frozen features on EuroSATDataModule, test') == 1
    assert len(list(tmp_path.glob('evaluation/*/table.json'))) == 1


@pytest.mark.parametrize('kind', [SimCLR, BYOL])
def test_tasks_of_torchgeo(kind: Any, tmp_path: Path) -> None:
    GENERATE['ucmerced'](tmp_path / 'data', number=4)
    datamodule = UCMercedDataModule(4, root=tmp_path / 'data')
    made = kind(model='resnet18', in_channels=3)
    logger = CSVLogger(tmp_path / 'logs')
    trainer = quiet_trainer(
        tmp_path,
        max_epochs=1,
        limit_train_batches=1,
        logger=logger,
        callbacks=[Evaluation(UCMercedDataModule(4, root=tmp_path / 'data'), size=64)],
    )
    trainer.fit(made, datamodule)
    with Path(logger.log_dir, 'metrics.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert any(row.get('val_knn') for row in rows)
    assert any(row.get('val_initial_linear') for row in rows)


def test_other_unit(scenes: RasterFolderDataModule, tmp_path: Path) -> None:
    """Of another unit than what is trained on: refused, with the argument."""
    scenes._unit = 255.0
    GENERATE['eurosat'](tmp_path / 'eurosat')
    judged = Evaluation(EuroSATDataModule(4, root=tmp_path / 'eurosat'))
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[judged])
    with pytest.raises(ValueError, match=r'unit 10000, .* unit=255'):
        trainer.fit(task(), scenes)


def test_other_bands(eurosat: EuroSATDataModule, tmp_path: Path) -> None:
    """Before the first step."""
    write_scene(tmp_path / 'rgb' / 'a.tif', bands=3, size=192, seed=0)
    data = RasterFolderDataModule(
        str(tmp_path / 'rgb'), patch_size=64, batch_size=2, length=4, unit=10_000
    )
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[Evaluation(eurosat)])
    with pytest.raises(ValueError, match=r'EuroSAT.* 13'):
        trainer.fit(task(in_channels=3), data)
    assert trainer.global_step == 0


@pytest.mark.parametrize('argument', ['every_n_epochs', 'max_images'])
def test_out_of_range(argument: str) -> None:
    arguments: dict[str, Any] = {argument: 0}
    with pytest.raises(ValueError, match=f'{argument}=0 must be at least 1'):
        Evaluation(EuroSAT100DataModule(), **arguments)
