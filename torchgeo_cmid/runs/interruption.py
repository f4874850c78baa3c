# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What keeps a run's files safe: from a full disk, a kill, and the next run."""

import csv
import inspect
import io
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO
from torch import Tensor

# Files of a run that the next one in the same folder would overwrite
_OWN = ('config.yaml', 'hparams.yaml', 'metrics.csv', 'checkpoints')

#: How the names of files begin that are not finished.
UNFINISHED = '.unfinished-'


class KeepFiles(Callback):
    """Writes checkpoints whole, and changes nothing of an earlier run in the folder.

    Lightning's command writes ``config.yaml`` anew, and its CSV logger removes
    ``metrics.csv``, whether a run goes on, or is only validated or tested.
    """

    def __init__(self) -> None:
        """Initialize a new KeepFiles instance."""
        self._rows: dict[CSVLogger, list[dict[str, str]]] = {}
        self._files: dict[Path, bytes] = {}

    def note(self, trainer: Trainer) -> None:
        """Look at what there is, before a logger does.

        Args:
            trainer: The trainer.
        """
        self._rows, self._files = {}, {}
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                folder = Path(logger.log_dir)
                self._rows[logger] = _read_rows(folder / 'metrics.csv')
                if not trainer.training and (folder / 'hparams.yaml').exists():
                    path = folder / 'hparams.yaml'
                    self._files[path] = path.read_bytes()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, SaveConfigCallback):
                self._keep_config(trainer, callback)

    def _keep_config(self, trainer: Trainer, callback: SaveConfigCallback) -> None:
        """Save the configuration beside that of the earlier run, or not at all."""
        folder = _folder_of(trainer)
        name = Path(callback.config_filename)
        if not (folder / name).exists():
            return
        if not trainer.training:
            callback.already_saved = True
        number = 1
        while (folder / f'{name.stem}-{number}{name.suffix}').exists():
            number += 1
        callback.config_filename = f'{name.stem}-{number}{name.suffix}'

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put back the rows that a logger has removed by now; write files whole.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        protect(trainer)
        if stage == 'fit' and trainer.is_global_zero:
            savers = trainer.checkpoint_callbacks
            folders = {getattr(saver, 'dirpath', None) for saver in savers}
            for folder in folders | {logger.log_dir for logger in self._rows}:
                if folder is not None:
                    clear_unfinished(Path(folder))
        for logger, rows in self._rows.items():
            if rows:
                logger.experiment.metrics[:0] = rows
                logger.experiment.save()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the rows of steps that are now taken once more.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        for logger, rows in self._rows.items():
            kept = [row for row in rows if int(row['step']) < trainer.global_step]
            if len(kept) < len(rows):
                _write_rows(Path(logger.log_dir, 'metrics.csv'), kept, rows)

    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Drop rows that were written a second time, and put other files back.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        if not trainer.is_global_zero:
            return
        for logger, before in self._rows.items():
            path = Path(logger.log_dir, 'metrics.csv')
            rows = _read_rows(path) if before else []
            # what is logged again after a resume is the same
            last = {
                (row['step'], *(name for name, value in row.items() if value)): row
                for row in rows
            }
            if len(last) < len(rows):
                _write_rows(path, list(last.values()), rows)
        for path, content in self._files.items():
            _write_whole(path, methodcaller('write', content))
        self._rows, self._files = {}, {}


def _read_rows(path: Path) -> list[dict[str, str]]:
    """Read the rows of a CSV file of metrics, none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline='') as file:
        rows = [
            row for row in csv.DictReader(file) if (row.get('step') or '').isdigit()
        ]
    return [{name: value for name, value in row.items() if value} for row in rows]


def _write_rows(
    path: Path, rows: list[dict[str, str]], named: list[dict[str, str]]
) -> None:
    """Write rows of metrics, all of them or none, under the names that others have."""
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, sorted(set().union(*named)))
    writer.writeheader()
    writer.writerows(rows)
    _write_whole(path, methodcaller('write', text.getvalue().encode()))


class SafeCheckpointIO(_WrappingCheckpointIO):
    """Writes a checkpoint whole or not at all, and none that could not be gone on with.

    It is written beside the file whose name it is to have, flushed to the disk, and
    renamed. Lightning's own writes elsewhere, and between two file systems its renaming
    is a copy: what ends it in the middle loses the last good file.
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
            ValueError: If a weight is NaN or infinite.
        """
        _require_finite_weights(checkpoint, str(path))
        try:
            if type(self.checkpoint_io) is TorchCheckpointIO and '://' not in str(path):
                _write_whole(Path(path), partial(torch.save, checkpoint))
            else:  # a user's own, or not on a local disk
                super().save_checkpoint(checkpoint, path, storage_options)
        except OSError as error:
            reason = (
                f'{error.strerror or error}; the checkpoint was not written, earlier '
                'ones are untouched: make room, and go on from the last by --ckpt_path'
            )
            raise OSError(error.errno, reason, str(path)) from error


def _require_finite_weights(checkpoint: Mapping[str, Any], path: str) -> None:
    """Refuse to save weights that no later step would repair."""
    for name, value in checkpoint.get('state_dict', {}).items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            raise ValueError(
                f'{name} is not finite at step {checkpoint.get("global_step")}: '
                f"'{path}' was not written, earlier checkpoints are untouched; go on "
                'from the last by --ckpt_path, with a lower lr, or with precision bf16 '
                'or 32'
            )


def _write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file beside its name, and give it the name when it is on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    unfinished = path.with_name(f'{UNFINISHED}{path.name}-{host}-{os.getpid()}')
    try:
        with unfinished.open('wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the name, too
    finally:
        os.close(folder)


def clear_unfinished(folder: Path) -> None:
    """Remove what processes that have ended left of files they were writing.

    Args:
        folder: Folder of a run, or of its checkpoints.
    """
    for path in folder.glob(f'{UNFINISHED}*'):
        host, _, pid = path.name.rpartition('-')
        if not host.endswith(f'-{socket.gethostname()}') or not pid.isdigit():
            continue
        if not Path('/proc').exists() or not Path('/proc', pid).exists():
            path.unlink(missing_ok=True)


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
    folder = _folder_of(trainer)
    old = [folder / name for name in _OWN if (folder / name).exists()]
    if old:
        raise FileExistsError(
            f"'{old[0]}' belongs to an earlier run: set another folder "
            '(--trainer.default_root_dir, or the version of the logger), resume that '
            'run by --ckpt_path, or set TORCHGEO_CMID_OVERWRITE=1 in the environment'
        )


def keep_earlier_files(trainer: Trainer) -> None:
    """Look at what an earlier run has left in the folder, unless it may be overwritten.

    Args:
        trainer: The trainer, before its loggers write anything.
    """
    if os.environ.get('TORCHGEO_CMID_OVERWRITE') == '1':
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, KeepFiles):
            callback.note(trainer)


def _folder_of(trainer: Trainer) -> Path:
    """Folder of a run, found out without asking the other processes."""
    return Path(getattr(trainer.logger, 'log_dir', None) or trainer.default_root_dir)


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
