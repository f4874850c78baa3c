# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The three schedules of CMID, as functions of step or epoch.

Source: section 4 of `CMID <https://arxiv.org/abs/2304.09670>`__.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


def cosine(step: int, total_steps: int, start: float, end: float) -> float:
    """Go from *start* to *end* along half a cosine.

    Args:
        step: Step n, from 0.
        total_steps: Number of steps S_max after which *end* is reached.
        start: Value at step 0.
        end: Value at step S_max and after.

    Returns:
        end - (end - start) (1 + cos(pi n / S_max)) / 2.
    """
    progress = min(step / total_steps, 1)
    return end - (end - start) * (1 + math.cos(math.pi * progress)) / 2


def learning_rate(
    step: int, total_steps: int, warmup_steps: int, lr: float, min_lr: float
) -> float:
    """Cosine from *lr* to *min_lr* that starts at step 0, times a linear warm-up.

    Args:
        step: Step n, from 0.
        total_steps: Number of optimizer steps S_max of the run.
        warmup_steps: Number of steps W of the warm-up, 0 for none.
        lr: Learning rate to warm up to.
        min_lr: Learning rate at the end.

    Returns:
        The learning rate of step n.
    """
    warmup = min(1, 0.01 + 0.99 * step / warmup_steps) if warmup_steps else 1
    return cosine(step, total_steps, lr, min_lr) * warmup


def teacher_temperature(
    epoch: int, warmup_epochs: float, warmup: float, final: float
) -> float:
    """Warm the teacher's temperature up linearly, then keep it.

    Args:
        epoch: Epoch e, from 0.
        warmup_epochs: Number of epochs of the warm-up; its last has the final value.
        warmup: Temperature at epoch 0.
        final: Temperature after the warm-up.

    Returns:
        The temperature of epoch e.
    """
    if warmup_epochs <= 1:
        return final
    return warmup + (final - warmup) * min(epoch / (warmup_epochs - 1), 1)


@dataclass(frozen=True)
class Schedules:
    """What changes in the course of a run, by step or epoch."""

    #: Settings of the task, none of them open any more.
    settings: Mapping[str, Any]
    #: Number of optimizer steps S_max of the run.
    total_steps: int = 1
    #: Number of optimizer steps of an epoch.
    steps_per_epoch: int = 1

    @property
    def warmup_steps(self) -> int:
        """Number of steps W of the learning rate's warm-up."""
        epochs: float = self.settings['warmup_epochs']
        return round(epochs * self.steps_per_epoch)

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step.

        Args:
            step: Optimizer step n, from 0.

        Returns:
            The learning rate.
        """
        ends = self.settings['lr'], self.settings['min_lr']
        return learning_rate(step, self.total_steps, self.warmup_steps, *ends)

    def peak_learning_rate(self, start: int = 0) -> tuple[int, float]:
        """Find the highest learning rate of the run, or of the rest of it.

        Args:
            start: Step from which on, from 0.

        Returns:
            Its step, from 0, and the learning rate: lower than that after the warm-up
            if the run is shorter, as the cosine starts with the warm-up.
        """
        end = min(self.warmup_steps + 1, self.total_steps)
        step = max(range(start, max(end, start + 1)), key=self.learning_rate)
        return step, self.learning_rate(step)

    def momentum(self, step: int) -> float:
        """Momentum m(n) of the teacher's update after a step.

        Args:
            step: Optimizer step n, from 0.

        Returns:
            The momentum.
        """
        ends = self.settings['momentum'], self.settings['final_momentum']
        return cosine(step, self.total_steps, *ends)

    def teacher_temperature(self, epoch: int) -> float:
        """Temperature T(e) of the teacher's assignments, where it is given.

        Args:
            epoch: Epoch e, from 0.

        Returns:
            The temperature.
        """
        return teacher_temperature(
            epoch,
            self.settings['warmup_teacher_temperature_epochs'],
            self.settings['warmup_teacher_temperature'],
            self.settings['teacher_temperature'],
        )
