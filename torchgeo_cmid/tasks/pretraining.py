# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How long a pre-training is, and the schedules and the optimizer that follow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from .. import schedules


@dataclass(frozen=True)
class PretrainingSchedules:
    """What changes in the course of a run, by step or epoch.

    Source: section 4 of `CMID <https://arxiv.org/abs/2304.09670>`__.
    """

    #: Arguments of the task.
    arguments: Mapping[str, Any]
    #: Learning rate after the warm-up.
    lr: float
    #: Number of optimizer steps S_max of the run.
    total_steps: int = 1
    #: Number of optimizer steps W in which the learning rate is warmed up.
    warmup_steps: int = 0
    #: Number of patches in a batch over all processes and accumulated batches.
    batch_size: int = 0

    @classmethod
    def of_run(cls, trainer: Trainer, arguments: Mapping[str, Any]) -> Self:
        """Ask a trainer how long its run is.

        Args:
            trainer: The trainer, about to fit.
            arguments: Arguments of the task.

        Returns:
            The schedules of the run.

        Raises:
            ValueError: If the run or its epochs have no end, if the number of patches
                in a batch is not known, or if it is one.
        """
        steps = trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                'the schedules need the end of the run: set max_epochs or max_steps'
            )
        trainer.fit_loop.setup_data()  # with max_steps alone nothing has asked yet
        batches = trainer.num_training_batches
        if math.isinf(batches):
            raise ValueError(
                'the schedules need epochs, but the data loader has no length: set '
                '--trainer.limit_train_batches to a number of batches'
            )
        batch_size = _global_batch_size(trainer)
        if batch_size == 1:
            raise ValueError(
                'a global batch of one patch can not be trained on: raise batch_size'
            )
        queue_size, patches = arguments['queue_size'], int(batches) * batch_size
        if arguments['global_branch'] == 'moco' and queue_size > patches:
            rank_zero_warn(
                f'queue_size={queue_size} holds more keys than an epoch has '
                f'patches ({patches}): older keys of the same patch become negatives'
            )
        accumulated = trainer.accumulate_grad_batches
        lr = arguments['lr']
        if lr is None:
            lr = 0.00625 * math.sqrt(batch_size * accumulated / 256)
        warmup_steps = arguments['warmup_epochs'] * math.ceil(batches / accumulated)
        return cls(arguments, lr, int(steps), warmup_steps, batch_size * accumulated)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step.

        Args:
            step: Optimizer step n, from 0.

        Returns:
            The learning rate.
        """
        steps = self.total_steps, self.warmup_steps
        return schedules.learning_rate(step, *steps, self.lr, self.arguments['min_lr'])

    def momentum(self, step: int) -> float:
        """Momentum m(n) of the teacher's update after a step.

        Args:
            step: Optimizer step n, from 0.

        Returns:
            The momentum.
        """
        ends = self.arguments['momentum'], self.arguments['final_momentum']
        return schedules.cosine(step, self.total_steps, *ends)

    def teacher_temperature(self, epoch: int) -> float:
        """Temperature T(e) of the teacher's assignments.

        Args:
            epoch: Epoch e, from 0.

        Returns:
            The temperature.
        """
        return schedules.teacher_temperature(
            epoch,
            self.arguments['warmup_teacher_temperature_epochs'],
            self.arguments['warmup_teacher_temperature'],
            self.arguments['teacher_temperature'],
        )


def _global_batch_size(trainer: Trainer) -> int:
    """Number of patches in a batch over all processes."""
    loader = trainer.train_dataloader
    batch_size = getattr(loader, 'batch_size', None)
    if batch_size is None:
        batch_size = getattr(getattr(loader, 'batch_sampler', None), 'batch_size', 0)
    if not batch_size:
        raise ValueError(
            f'{type(loader).__name__} has no batch_size: CMID needs to know the number '
            'of patches in a batch'
        )
    return int(batch_size) * trainer.world_size
