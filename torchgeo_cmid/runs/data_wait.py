# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How much of its time a run spends waiting for data."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .log_steps import LogSteps


class DataWait(Callback):
    """Log the share of time spent waiting for data, as ``data_wait``.

    It is a mean over the steps since the last one that was logged, of this process
    alone. Waiting is what lies between the end of a step and the start of the next:
    reading, and sending to the device; validation and the saving of checkpoints are
    not counted. It works with any task. Nothing waits for the device, so on an
    accelerator that is still busy meanwhile the share is an upper bound: near 0 data
    are no limit, and above about 0.2 more ``num_workers`` or a faster disk may pay.
    """

    def __init__(self) -> None:
        """Initialize a new DataWait instance."""
        self._log_steps = LogSteps()
        self._restart()
        self._waited = self._elapsed = 0.0

    def _restart(self) -> None:
        """Begin to measure: what lies before is not counted."""
        self._step_ended = self._step_started = time.perf_counter()
        self._is_saving = False

    def on_train_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Begin to measure.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._restart()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not count the validation as waiting.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._restart()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Do not count the saving as waiting, which begins here.

        Args:
            trainer: The trainer.
            pl_module: The task.
            checkpoint: The checkpoint.
        """
        self._is_saving = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Measure how long this batch was waited for.

        Args:
            trainer: The trainer.
            pl_module: The task.
            batch: The batch.
            batch_idx: Its index.
        """
        if self._is_saving:
            self._restart()
            return
        now = time.perf_counter()
        self._waited += now - self._step_ended
        self._elapsed += now - self._step_started
        self._step_started = now

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
        """From here on the next batch is waited for; log at the steps that are logged.

        Args:
            trainer: The trainer.
            pl_module: The task.
            *args: The output of the step, the batch and its index.
        """
        self._step_ended = time.perf_counter()
        if self._log_steps.ended(trainer) and self._elapsed:
            share = self._waited / self._elapsed
            self._waited = self._elapsed = 0.0
            pl_module.log('data_wait', share, batch_size=1)
