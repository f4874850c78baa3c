# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What Lightning puts in the place of a sampler, or asks of a data set, works."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder
from torch import Tensor, nn

from tests.data.geotiff.data import generate
from tests.trainers import quiet_trainer
from torchgeo_cmid.datamodules import RasterFolderDataModule


class Watch(LightningModule):
    """Notes which patches it is shown."""

    def __init__(self) -> None:
        """Initialize a new Watch instance."""
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.shown: list[tuple[int, list[list[int]]]] = []
        self.validated: list[tuple[int, list[list[int]]]] = []

    def training_step(self, batch: dict[str, Any], number: int) -> Tensor:
        self.shown.append((self.current_epoch, batch['patch'].tolist()))
        return self.layer(batch['image'].mean(dim=(2, 3))).mean()

    def validation_step(self, batch: dict[str, Any], number: int) -> None:
        if not self.trainer.sanity_checking:
            self.validated.append((self.current_epoch, batch['patch'].tolist()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(folder: Path, **arguments: Any) -> tuple[Watch, RasterFolderDataModule]:
    generate(folder / 'data', 2, size=96)
    data = RasterFolderDataModule(
        str(folder / 'data'),
        patch_size=16,
        length=16,
        batch_size=4,
        val_split=0.3,
        val_length=16,
    )
    task = Watch()
    trainer = quiet_trainer(folder, max_epochs=2, **arguments)
    trainer.fit(task, data)
    return task, data


@pytest.mark.parametrize('number', [1, 2, 0.5])
def test_overfit_batches(number: float, tmp_path: Path) -> None:
    """The same first patches that the sampler draws, in every epoch."""
    task, data = fit(tmp_path, overfit_batches=number)
    batches = int(number * 4) if isinstance(number, float) else number
    data.train_sampler.set_epoch(0)
    drawn = [list(patch) for patch in data.train_sampler]
    first = [drawn[4 * i : 4 * i + 4] for i in range(batches)]
    assert task.shown == [(epoch, batch) for epoch in (0, 1) for batch in first]
    grid = [list(patch) for patch in data.val_sampler]
    assert task.validated[0] == (0, grid[:4])


def test_batch_size_finder(tmp_path: Path) -> None:
    """It goes on as long as there are patches, not as there are scenes."""
    finder = BatchSizeFinder(steps_per_trial=1, init_val=2, max_trials=10)
    _, data = fit(tmp_path, callbacks=[finder])
    assert data.batch_size == 16


def test_limits_are_those_of_patches(tmp_path: Path) -> None:
    task, _ = fit(tmp_path, limit_train_batches=0.5)
    assert [epoch for epoch, _ in task.shown] == [0, 0, 1, 1]
