# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""An alarm when the features of a run carry no information any more."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .log_steps import LogSteps

#: Share of ln K: above the first the teacher assigns each cell to all prototypes alike,
#: below the second all cells to the same prototypes.
UNIFORM, SAME = 0.99, 0.1

#: Effective rank below which embeddings differ in little but their length.
LOWEST_RANK = 2

ENTROPIES = ('train_assignment_entropy', 'train_mean_assignment_entropy')


class CollapseAlarm(Callback):
    """Warn when features have collapsed, and say what to change.

    It reads what a task has logged, any task: ``train_assignment_entropy`` and
    ``train_mean_assignment_entropy``, shares of the largest entropy, in the steps that
    the trainer logs; and ``val_rank_me``, the effective rank of the embedding, after a
    validation of three patches or more, as that of two is never above 2. What is not
    logged is not looked at.
    """

    def __init__(self) -> None:
        """Initialize a new CollapseAlarm instance."""
        self._log_steps = LogSteps()
        self._patches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Learn at which step the run begins or goes on.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._log_steps.start(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any
    ) -> None:
        """Warn when the local branch goes uniform or falls on one prototype.

        Args:
            trainer: The trainer.
            pl_module: The task.
            *args: The output of the step, the batch and its index.
        """
        if not self._log_steps.ended(trainer):
            return
        metrics = trainer.callback_metrics
        if any(name not in metrics for name in ENTROPIES):
            return
        # one transfer: each waits for the device
        each, mean = torch.stack([metrics[name].float() for name in ENTROPIES]).tolist()
        rate = _lower_rate(trainer)
        if each > UNIFORM:
            rank_zero_warn(
                'the local branch has gone uniform: the teacher assigns each cell to '
                f'all prototypes alike. {_sharpen(pl_module)}, or {rate}.'
            )
        if mean < SAME:
            momentum = pl_module.hparams.get('center_momentum')
            to = '' if momentum is None else f' to {max(2 * momentum - 1, 0):.3g}'
            rank_zero_warn(
                'the local branch has collapsed: the teacher assigns all cells to the '
                f'same prototypes. Lower center_momentum{to}, or {rate}.'
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count the patches.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._patches = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        *args: Any,
    ) -> None:
        """Count the patches.

        Args:
            trainer: The trainer.
            pl_module: The task.
            outputs: The output of the step.
            batch: The batch.
            *args: Its index and that of its loader.
        """
        images = batch.get('image') if isinstance(batch, Mapping) else batch
        # of a batch of another kind is known only that it is not empty
        self._patches += len(images) if isinstance(images, Tensor) else 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn when the embedding has collapsed.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        # Other processes have as many, but the sampler may have repeated some for that.
        # Of one or two patches the rank can not tell anything.
        others = trainer.world_size - 1
        if trainer.sanity_checking or self._patches + others * (self._patches - 1) <= 2:
            return
        rank = trainer.callback_metrics.get('val_rank_me')
        if rank is not None and rank < LOWEST_RANK:
            rank_zero_warn(
                'the features have collapsed: the effective rank of the embedding is '
                f'{float(rank):.2f}. {_lower_rate(trainer).capitalize()}, or raise the '
                'batch size.'
            )


def _sharpen(task: LightningModule) -> str:
    """Say to which value to set what makes the teacher's assignments sharper."""
    settings = getattr(task, 'settings', task.hparams)
    if settings.get('sharpness') is not None:
        return f'Raise sharpness to {1.5 * settings["sharpness"]:.3g}'
    temperature = settings.get('teacher_temperature')
    to = '' if temperature is None else f' to {temperature / 2:.3g}'
    return f'Lower teacher_temperature{to}'


def _lower_rate(trainer: Trainer) -> str:
    """Say to which value to lower the learning rate, half of that of the run."""
    if not trainer.optimizers:  # in `trainer.validate`
        return 'lower the learning rate'
    group = trainer.optimizers[0].param_groups[0]
    rate = group.get('initial_lr', group['lr'])  # the former before any schedule
    return f'lower the learning rate to {rate / 2:.2g}'
