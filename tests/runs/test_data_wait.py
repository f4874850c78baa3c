# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The share of time spent waiting for data, with any task and a clock that is given."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchgeo.tasks import SimCLR

from torchgeo_cmid.runs.data_wait import DataWait


class Clock:
    """A clock that only moves when something takes time."""

    now = 0.0

    def __call__(self) -> float:
        """Tell the time, in seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, 'perf_counter', clock)
    return clock


class Slow(IterableDataset[Tensor]):
    """Each sample takes three seconds."""

    def __init__(self, clock: Clock, number: int) -> None:
        """Give a number of samples."""
        self.clock, self.number = clock, number

    def __len__(self) -> int:
        """Tell how many."""
        return self.number

    def __iter__(self) -> Iterator[Tensor]:
        """Take time for each."""
        for _ in range(self.number):
            self.clock.now += 3
            yield torch.zeros(1)


class Task(LightningModule):
    """Each step takes one second, a validation a hundred."""

    def __init__(self, clock: Clock) -> None:
        """One layer, so that there is something to train."""
        super().__init__()
        self.clock = clock
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now += 1
        loss: Tensor = self.layer(batch).sum()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.now += 100

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SlowCheckpoint(ModelCheckpoint):
    """Takes a thousand seconds to save."""

    def __init__(self, clock: Clock, folder: Path) -> None:
        """Save after each second step."""
        super().__init__(folder, every_n_train_steps=2, save_top_k=-1)
        self.clock = clock

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self.clock.now += 1000


def fit(folder: Path, task: LightningModule, *data: Any, **kwargs: Any) -> list[float]:
    """What was logged."""
    ckpt_path = kwargs.pop('ckpt_path', None)
    callbacks: list[Callback] = [DataWait(), *kwargs.pop('callbacks', [])]
    trainer = Trainer(
        default_root_dir=folder,
        accelerator='cpu',
        logger=CSVLogger(folder, version=0),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **({'max_epochs': 1, 'enable_checkpointing': len(callbacks) > 1} | kwargs),
    )
    trainer.fit(task, *data, ckpt_path=ckpt_path)
    with (folder / 'lightning_logs' / 'version_0' / 'metrics.csv').open() as file:
        rows = list(csv.DictReader(file))
    return [float(row['data_wait']) for row in rows if row['data_wait']]


class TestDataWait:
    @pytest.mark.parametrize(('every', 'number'), [(1, 5), (2, 2), (5, 1)])
    def test_share(self, tmp_path: Path, clock: Clock, every: int, number: int) -> None:
        """Three seconds of each four, in each step that is logged."""
        data = DataLoader(Slow(clock, 6), batch_size=None)
        waits = fit(tmp_path, Task(clock), data, log_every_n_steps=every)
        # the first batch has no step before it: its wait is all there is so far
        assert waits[0] == pytest.approx((3 * every) / (4 * every - 1))
        assert waits[1:] == pytest.approx([0.75] * (6 // every - 1))
        assert len(waits) == 6 // every

    def test_accumulation(self, tmp_path: Path, clock: Clock) -> None:
        data = DataLoader(Slow(clock, 8), batch_size=None)
        arguments = {'accumulate_grad_batches': 2, 'log_every_n_steps': 2}
        waits = fit(tmp_path, Task(clock), data, **arguments)
        assert waits == pytest.approx([12 / 15, 0.75])

    def test_goes_on_where_a_step_is_logged(self, tmp_path: Path, clock: Clock) -> None:
        """Regression: the first batch after a resume passed for a step of its own."""
        arguments: dict[str, Any] = {
            'accumulate_grad_batches': 2,
            'log_every_n_steps': 2,
            'enable_checkpointing': True,
        }
        data = DataLoader(Slow(clock, 8), batch_size=None)
        checkpoint = ModelCheckpoint(tmp_path, filename='{step}', save_top_k=-1)
        before = fit(tmp_path, Task(clock), data, callbacks=[checkpoint], **arguments)
        assert len(before) == 2
        after = fit(
            tmp_path / 'again',
            Task(clock),
            data,
            ckpt_path=tmp_path / 'step=4.ckpt',
            max_epochs=2,
            **arguments,
        )
        assert after == pytest.approx(before)

    def test_what_lies_between_epochs_is_no_waiting(
        self, tmp_path: Path, clock: Clock
    ) -> None:
        class Between(Callback):
            def on_train_epoch_end(self, *args: Any) -> None:
                clock.now += 500

        data = DataLoader(Slow(clock, 4), batch_size=None)
        arguments: dict[str, Any] = {'log_every_n_steps': 4, 'max_epochs': 2}
        waits = fit(tmp_path, Task(clock), data, callbacks=[Between()], **arguments)
        assert waits == pytest.approx([12 / 15] * 2)

    def test_validation_is_no_waiting(self, tmp_path: Path, clock: Clock) -> None:
        data = DataLoader(Slow(clock, 4), batch_size=None)
        arguments = {'val_check_interval': 1, 'log_every_n_steps': 2, 'max_epochs': 2}
        waits = fit(tmp_path, Task(clock), data, data, **arguments)
        # after a validation there is no step before the wait
        assert all(wait <= 1 for wait in waits)
        assert waits == pytest.approx([1] * 4)

    def test_saving_is_no_waiting(self, tmp_path: Path, clock: Clock) -> None:
        """Regression: a checkpoint's way to the disk was counted as data's."""
        data = DataLoader(Slow(clock, 8), batch_size=None)
        checkpoint = SlowCheckpoint(clock, tmp_path)
        arguments = {'log_every_n_steps': 4, 'callbacks': [checkpoint]}
        waits = fit(tmp_path, Task(clock), data, **arguments)
        assert checkpoint.best_model_path
        assert waits == pytest.approx([9 / 11, 0.75])

    def test_never_logged(self, tmp_path: Path, clock: Clock) -> None:
        data = DataLoader(Slow(clock, 3), batch_size=None)
        with pytest.raises(FileNotFoundError):  # there are no metrics
            fit(tmp_path, Task(clock), data, log_every_n_steps=0)

    def test_task_of_torchgeo(self, tmp_path: Path) -> None:
        task = SimCLR(model='resnet18', in_channels=3, version=1, size=32)
        samples = [{'image': torch.rand(3, 32, 32)} for _ in range(4)]
        data = DataLoader(samples, batch_size=2)  # type: ignore[arg-type]
        (wait,) = fit(tmp_path, task, data, log_every_n_steps=2)
        assert 0 < wait < 1
