# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The alarm rings when it should, and can be silent."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchgeo.tasks import SimCLR

from torchgeo_cmid.runs.collapse import CollapseAlarm


class Task(LightningModule):
    """Logs what it is told to."""

    def __init__(self, rank: float = 9.0, **logged: float) -> None:
        """One layer, so that there is something to train."""
        super().__init__()
        self.save_hyperparameters({'teacher_temperature': 0.07, 'center_momentum': 0.9})
        self.layer = nn.Linear(1, 1)
        self.rank, self.logged = rank, logged

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log_dict({f'train_{name}': value for name, value in self.logged.items()})
        loss: Tensor = self.layer(torch.zeros(1)).sum()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log('val_rank_me', self.rank)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.004)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
        return [optimizer], [{'scheduler': schedule, 'interval': 'step'}]


def loader(patches: int, batch_size: int = 2) -> Any:
    samples = [{'image': torch.rand(3, 32, 32)} for _ in range(patches)]
    return DataLoader(samples, batch_size=batch_size)  # type: ignore[arg-type]


def alarms(
    folder: Path, task: LightningModule, patches: int = 8, **kwargs: Any
) -> list[str]:
    """What the alarm says of a run with this many patches for validation."""
    trainer = Trainer(
        default_root_dir=folder,
        accelerator='cpu',
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CollapseAlarm()],
        **({'max_epochs': 1, 'log_every_n_steps': 1} | kwargs),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        trainer.fit(task, loader(4), loader(patches))
    words = 'uniform', 'collapsed'
    texts = [str(warning.message) for warning in caught]
    return [text for text in texts if any(word in text for word in words)]


class TestAssignments:
    @pytest.mark.parametrize(
        ('each', 'mean', 'message'),
        [
            (0.995, 0.999, 'gone uniform: .* teacher_temperature to 0.035, or lower'),
            (0.05, 0.05, 'has collapsed: .* center_momentum to 0.8, or lower'),
        ],
    )
    def test_alarm(
        self, tmp_path: Path, each: float, mean: float, message: str
    ) -> None:
        task = Task(assignment_entropy=each, mean_assignment_entropy=mean)
        first, second = alarms(tmp_path, task)
        assert first == second
        assert re.search(message, first)
        # of the whole run, not of this step of its schedule
        assert 'the learning rate to 0.002' in first

    def test_no_alarm(self, tmp_path: Path) -> None:
        task = Task(assignment_entropy=0.5, mean_assignment_entropy=0.9)
        assert not alarms(tmp_path, task)
        assert not alarms(tmp_path, Task(assignment_entropy=1.0))  # half of it is not

    @pytest.mark.parametrize(('every', 'number'), [(2, 1), (3, 0), (0, 0)])
    def test_only_where_the_trainer_logs(
        self, tmp_path: Path, every: int, number: int
    ) -> None:
        task = Task(assignment_entropy=1.0, mean_assignment_entropy=1.0)
        assert len(alarms(tmp_path, task, log_every_n_steps=every)) == number


class TestRank:
    def test_alarm(self, tmp_path: Path) -> None:
        (text,) = alarms(tmp_path, Task(rank=1.234))
        assert 'effective rank of the embedding is 1.23. Lower the learning' in text
        assert 'rate to 0.002, or raise the batch size' in text

    def test_no_alarm(self, tmp_path: Path) -> None:
        assert not alarms(tmp_path, Task(rank=2.5))

    @pytest.mark.parametrize(('patches', 'number'), [(1, 0), (2, 0), (3, 1)])
    def test_few_patches(self, tmp_path: Path, patches: int, number: int) -> None:
        """Regression: with one or two patches the alarm could not be silent."""
        assert len(alarms(tmp_path, Task(rank=1.0), patches)) == number

    @pytest.mark.parametrize(('local', 'number'), [(1, 0), (2, 1)])
    def test_few_patches_of_four_processes(self, local: int, number: int) -> None:
        """One each may be one patch that was repeated; two each are five or more."""
        trainer = Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)
        metrics = {'val_rank_me': torch.tensor(1.0)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, 'world_size', 4)
            patch.setattr(Trainer, 'callback_metrics', metrics)
            alarm = CollapseAlarm()
            alarm.on_validation_start(trainer, Task())
            batch = {'image': torch.zeros(local, 1)}
            alarm.on_validation_batch_end(trainer, Task(), None, batch, 0)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter('always')
                alarm.on_validation_end(trainer, Task())
        assert len(caught) == number

    def test_sanity_check(self, tmp_path: Path) -> None:
        """Features that were not trained yet may be anything."""
        task = Task(rank=1.0)
        arguments = {'check_val_every_n_epoch': 2, 'num_sanity_val_steps': 2}
        assert not alarms(tmp_path, task, **arguments)

    def test_validate_alone(self) -> None:
        trainer = Trainer(
            accelerator='cpu',
            logger=False,
            enable_progress_bar=False,
            callbacks=[CollapseAlarm()],
        )
        with pytest.warns(UserWarning, match='collapsed: .* Lower the learning rate,'):
            trainer.validate(Task(rank=1.0), loader(8), verbose=False)

    def test_other_batches(self, tmp_path: Path) -> None:
        """Any task: its batches need not be TorchGeo's."""
        trainer = Trainer(
            accelerator='cpu',
            logger=False,
            enable_progress_bar=False,
            callbacks=[CollapseAlarm()],
        )
        data = DataLoader(torch.zeros(8, 1), batch_size=4)  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match='the features have collapsed'):
            trainer.validate(Task(rank=1.0), data, verbose=False)
        strings = DataLoader(['a'] * 8, batch_size=2)  # type: ignore[arg-type]
        with pytest.warns(UserWarning, match='the features have collapsed'):
            trainer.validate(Task(rank=1.0), strings, verbose=False)


def test_task_of_torchgeo(tmp_path: Path) -> None:
    """It logs none of these, so there is nothing to say."""
    task = SimCLR(model='resnet18', in_channels=3, version=1, size=32)
    assert not alarms(tmp_path, task)
