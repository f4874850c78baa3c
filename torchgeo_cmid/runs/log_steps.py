# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Which steps the trainer logs: only then may a callback wait for the device."""

from lightning.pytorch import Trainer


class LogSteps:
    """Tells, at the end of each batch, whether a step ended that the trainer logs."""

    def __init__(self) -> None:
        """Initialize a new LogSteps instance."""
        self._done = 0

    def ended(self, trainer: Trainer) -> bool:
        """Look at the trainer, at the end of each batch.

        Args:
            trainer: The trainer, in ``on_train_batch_end``.

        Returns:
            Whether this batch ended a step, not one of several batches, that is one of
            every ``log_every_n_steps``; never if that is 0.
        """
        done, before = trainer.global_step, self._done
        self._done = done
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        return done != before and every > 0 and done % every == 0
