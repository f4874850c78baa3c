# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What keeps a run's files safe: from a signal, a full disk, and the next run."""

import inspect
import os
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

# Files of a run that the next one in the same folder would overwrite
_OWN = ('config.yaml', 'hparams.yaml', 'metrics.csv', 'checkpoints')


class SaveOnSigterm(Callback):
    """Saves a checkpoint when a scheduler asks the run to end, by SIGTERM.

    Lightning ends the batch that is running, and then the run.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let checkpoints be written so that no good one is lost.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        protect(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save the checkpoint, if the run saves any.

        Args:
            trainer: The trainer.
            pl_module: The task.
            exception: What ended the run.
        """
        checkpoint = trainer.checkpoint_callback
        if not isinstance(exception, SIGTERMException):
            return
        if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.dirpath is None:
            return
        name = f'sigterm-epoch={trainer.current_epoch}-step={trainer.global_step}.ckpt'
        path = os.path.join(checkpoint.dirpath, name)
        trainer.save_checkpoint(path)
        rank_zero_info(f'ended by SIGTERM: go on with --ckpt_path {path}')


class SafeCheckpointIO(_WrappingCheckpointIO):
    """Says which checkpoint could not be written, and that no good one is lost.

    Lightning writes into another file first, which then takes the name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save a checkpoint.

        Args:
            checkpoint: What to save.
            path: Where to.
            storage_options: Passed on.

        Raises:
            OSError: If it can not be written.
        """
        try:
            super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            reason = (
                f'{error.strerror or error}; the checkpoint was not written, earlier '
                'ones are untouched: make room, and go on from the last by --ckpt_path'
            )
            raise OSError(error.errno, reason, str(path)) from error


def protect(trainer: Trainer) -> None:
    """Let checkpoints be written by :class:`SafeCheckpointIO`, once.

    Args:
        trainer: The trainer.
    """
    plugin: CheckpointIO = trainer.strategy.checkpoint_io
    if not isinstance(plugin, SafeCheckpointIO):
        trainer.strategy.checkpoint_io = SafeCheckpointIO(plugin)


def refuse_old_run(trainer: Trainer) -> None:
    """Refuse to write into the folder of an earlier run.

    TorchGeo's command overwrites ``config.yaml`` there, and loggers their files.

    Args:
        trainer: The trainer.

    Raises:
        FileExistsError: If the folder holds files of a run, this one is not its
            continuation (``--ckpt_path``), and TORCHGEO_CMID_OVERWRITE is not 1.
    """
    if trainer.fast_dev_run or _is_resumed(trainer):  # type: ignore[attr-defined]
        return
    if os.environ.get('TORCHGEO_CMID_OVERWRITE') == '1':
        return
    logger = trainer.logger
    folder = Path(getattr(logger, 'log_dir', None) or trainer.default_root_dir)
    old = [folder / name for name in _OWN if (folder / name).exists()]
    if old:
        raise FileExistsError(
            f"'{old[0]}' belongs to an earlier run: set another folder "
            '(--trainer.default_root_dir, or the version of the logger), resume that '
            'run by --ckpt_path, or set TORCHGEO_CMID_OVERWRITE=1 in the environment'
        )


def _is_resumed(trainer: Trainer) -> bool:
    """Tell whether the run that is being prepared goes on from a checkpoint.

    Until data and callbacks are set up, Lightning knows that in a local variable only.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == '_run' and frame.f_locals.get('self') is trainer:
            return frame.f_locals['ckpt_path'] is not None
        frame = frame.f_back
    return False
