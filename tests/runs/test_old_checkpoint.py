# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A run that was started with version 0.1 goes on as if nothing had been moved.

``tests/data/old_run`` holds its checkpoint after the fourth of six steps, in the middle
of an epoch, and the losses of the steps that version 0.1 took after it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from tests.data.geotiff.data import write_scene
from torchgeo_cmid.callbacks import PretrainingReport
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.tasks import CMID

OLD = Path(__file__).parents[1] / 'data' / 'old_run'


def test_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / 'scenes'
    write_scene(folder / 'a.tif', bands=1, size=160, seed=0)
    write_scene(folder / 'b.tif', bands=1, size=160, crs='EPSG:32622', seed=1)
    seed_everything(4)  # that of the checkpoint counts
    datamodule = RasterFolderDataModule(
        str(folder), patch_size=64, batch_size=4, length=12
    )
    task = CMID(
        model='test_convnext',
        in_channels=1,
        size=64,
        queue_size=16,
        hidden_dim=16,
        num_prototypes=8,
        bottleneck_dim=8,
        projection_dim=8,
        num_matches=4,
        optimizer='sgd',
        lr=0.01,
    )
    report = PretrainingReport()
    trainer = Trainer(
        accelerator='cpu',
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        max_epochs=2,
        callbacks=[ModelCheckpoint(tmp_path, every_n_train_steps=1), report],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with caplog.at_level('INFO'):
        trainer.fit(task, datamodule, ckpt_path=OLD / 'step=4.ckpt')

    expected: dict[str, Any] = json.loads((OLD / 'losses.json').read_text())
    assert report.steps['loss'] == [0, 1, 2, 3, 4, 5]
    assert report.curves['loss'][4:] == pytest.approx(expected['train_loss'], rel=1e-3)
    metrics = trainer.callback_metrics
    assert float(metrics['val_loss']) == pytest.approx(expected['val_loss'], rel=1e-3)
    # what it lacks is named, once, with what stands in its place
    said = [r.getMessage() for r in caplog.records if 'version 0.2' in r.getMessage()]
    assert len(said) == 1
    assert "lacks 'pixels': mean and std are those of the data module" in said[0]
    assert task.pixels is not None
    assert task.pixels.mean == pytest.approx([5004.975016276042])
