# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which steps the trainer logs: only then may a callback wait for the device."""

from collections.abc import Collection

from lightning.pytorch import Trainer


class LogSteps:
    """Tells, at the end of each batch, whether a step ended that the trainer logs."""

    def __init__(self) -> None:
        """Initialize a new LogSteps instance."""
        self._done = 0

    def start(self, trainer: Trainer) -> None:
        """Begin to count, where the run begins or goes on.

        Args:
            trainer: The trainer, in ``on_train_start``.
        """
        self._done = trainer.global_step

    def ended(
        self, trainer: Trainer, *, thinning: int = 1, also: Collection[int] = ()
    ) -> bool:
        """Look at the trainer, at the end of each batch.

        Args:
            trainer: The trainer, in ``on_train_batch_end``.
            thinning: Count one of so many of the steps that are logged.
            also: Numbers of further steps that count, from 1.

        Returns:
            Whether this batch ended a step, not one of several batches, that is one of
            every ``log_every_n_steps``, or of *also*; of these alone if that is 0.
        """
        done, before = trainer.global_step, self._done
        self._done = done
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        every *= thinning
        return done != before and (done in also or (every > 0 and done % every == 0))
