# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What Lightning 2.6 forgets of an epoch when a run goes on from a checkpoint."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler


class ResumedEpoch(Callback):
    """Begins an epoch where one begins, and has its number of batches in a step.

    From the last step of an epoch Lightning goes on in the next one as if that had been
    begun before: it is not counted, so the checkpoints of it are taken for those of an
    epoch that is over, and a second resume counts the batches of an accumulated step
    anew. In the middle of an epoch no callback is told of its start, so that those who
    set the number of batches in a step do not.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mend both.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        loop = trainer.fit_loop
        if not loop.restarted_mid_epoch:
            return
        progress: Any = loop.epoch_progress.current
        if progress.processed == progress.ready:  # it was over
            loop.reset_restart_stage()
            return
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GradientAccumulationScheduler):
                callback.on_train_epoch_start(trainer)
