# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A run that a scheduler asks to end, by a signal, ends in order on all processes."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

#: What asks a run to end.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class IgnoreSigterm:
    """A *worker_init_fn*: workers go on when their whole group is asked to end.

    Else they die of it, and the main process of their death, before it can save.
    """

    def __init__(self, then: Callable[[int], None] | None) -> None:
        """Initialize a new IgnoreSigterm instance.

        Args:
            then: The user's own *worker_init_fn*.
        """
        self.then = then

    def __call__(self, worker: int) -> None:
        """Begin a worker.

        Args:
            worker: Its number.
        """
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self.then is not None:
            self.then(worker)


class SaveOnSigterm(Callback):
    """Saves a checkpoint and ends the run when SIGTERM or SIGUSR1 asks it to.

    The signal is only noted. A task tells the others of it in a message that every step
    sends anyway (see :meth:`share`), so all end after the same step, whichever of them
    it came to. Before the first step there is nothing to save, and the process ends.
    """

    def __init__(self) -> None:
        """Initialize a new SaveOnSigterm instance."""
        self.noted = False
        #: What all processes have told in this step, (processes,). None: not asked.
        self.answers: Tensor | None = None
        self._begun = False
        self._before: dict[int, Any] = {}

    def share(self, device: torch.device) -> Tensor:
        """Tell whether this process was asked to end, for a message to all.

        Args:
            device: Device of the message.

        Returns:
            1 or 0, ().
        """
        return torch.tensor(int(self.noted), device=device)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let workers go on when their whole group gets a signal.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self.noted = self._begun = False
        self.answers = None
        loops: list[Any] = [trainer.fit_loop]
        if trainer.enable_validation:
            loops.append(trainer.fit_loop.epoch_loop.val_loop)
        for loop in loops:
            loop.setup_data()
            loaders = loop._combined_loader
            for loader in [] if loaders is None else loaders.flattened:
                if isinstance(loader, DataLoader) and loader.num_workers:
                    loader.worker_init_fn = IgnoreSigterm(loader.worker_init_fn)

    def on_sanity_check_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Wait for signals.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._listen(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for signals.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._listen(trainer)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """From now on there is something to save.

        Args:
            trainer: The trainer.
            *args: The task, the batch and its index.
        """
        self._begun = True

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """End after the step in which all have learnt of the signal.

        Args:
            trainer: The trainer.
            *args: The task, the output of the step, the batch and its index.

        Raises:
            SIGTERMException: If they have.
        """
        self._end()

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """End in a validation, which is done again when the run goes on.

        Args:
            trainer: The trainer.
            *args: The task, the output of the step, the batch and its index.

        Raises:
            SIGTERMException: If all have learnt of the signal.
        """
        if not trainer.sanity_checking:
            self._end()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save the checkpoint, if the run saves any.

        Args:
            trainer: The trainer.
            pl_module: The task.
            exception: What ended the run.
        """
        self._ignore()
        checkpoint = trainer.checkpoint_callback
        if not isinstance(exception, SIGTERMException) or not self._begun:
            return
        if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.dirpath is None:
            return
        name = f'sigterm-epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt'
        path = os.path.join(checkpoint.dirpath, name)
        trainer.save_checkpoint(path)
        rank_zero_info(f'ended by SIGTERM: go on with --ckpt_path {path}')

    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Leave signals to those who had them before.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        self._ignore()

    def _end(self) -> None:
        """End the run if all processes have learnt of the signal."""
        if self.answers is not None and bool(self.answers.any()):
            raise SIGTERMException

    def _listen(self, trainer: Trainer) -> None:
        """Take the place of Lightning's handler, which waits for all processes."""
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        environment = trainer._accelerator_connector.cluster_environment
        if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
            return  # Lightning saves and puts the job into the queue again
        if trainer.received_sigterm and not self._begun:
            raise SystemExit(128 + signal.SIGTERM)  # it came while the run was set up
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)

    def _ignore(self) -> None:
        """Put the handlers back that were there before."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: Any) -> None:
        """Note a signal; end at once where nothing has been learnt."""
        self.noted = True
        if not self._begun:
            raise SystemExit(128 + number)
