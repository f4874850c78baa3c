# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A small run that tests start as a process of its own, to kill it."""

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.tasks import CMID

STEPS = 8


class Slow(Callback):
    """Takes its time, so that a signal comes in the middle."""

    def on_train_batch_start(self, *args: Any) -> None:
        """Wait."""
        time.sleep(0.3)


class Signal(Callback):
    """Sends a signal to this process, at a moment of the run."""

    def __init__(self, moment: str, number: int, rank: int = 0) -> None:
        """Initialize a new Signal instance."""
        self.moment = moment
        self.number = number
        self.rank = rank

    def send(self, trainer: Trainer, moment: str) -> None:
        """Send it."""
        if moment == self.moment and trainer.global_rank == self.rank:
            self.moment = ''
            os.kill(os.getpid(), self.number)

    def on_sanity_check_start(self, trainer: Trainer, *args: Any) -> None:
        """Before the first step."""
        self.send(trainer, 'before')

    def on_train_batch_start(
        self, trainer: Trainer, module: Any, batch: Any, batch_idx: int
    ) -> None:
        """In a batch of the second epoch."""
        if trainer.current_epoch:
            self.send(trainer, f'batch {batch_idx}')

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """In a validation."""
        if not trainer.sanity_checking:
            self.send(trainer, 'validation')


def quiet_trainer(folder: Path, **kwargs: Any) -> Trainer:
    """Train on a CPU, keep all in one folder, and say little."""
    return Trainer(
        accelerator='cpu',
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def run(
    scenes: Path,
    folder: Path,
    resume: Path | None = None,
    *,
    workers: int = 0,
    slow: bool = False,
    signals: Signal | None = None,
    **kwargs: Any,
) -> tuple[CMID, Trainer]:
    """Train two epochs of four steps, and keep the checkpoint of each step."""
    seed_everything(1)
    datamodule = RasterFolderDataModule(
        str(scenes), patch_size=64, batch_size=2, length=8, num_workers=workers
    )
    task = CMID(
        model='test_resnet',
        size=64,
        queue_size=16,
        hidden_dim=16,
        num_prototypes=8,
        lr=1e-3,
    )
    checkpoints = ModelCheckpoint(
        folder / 'checkpoints',
        filename='{step}',
        every_n_train_steps=1,
        save_top_k=-1,
        save_last=True,
    )
    callbacks = [checkpoints, *([Slow()] if slow else [])]
    callbacks += [signals] if signals else []
    kwargs = {'max_epochs': 2} | kwargs
    trainer = quiet_trainer(folder, callbacks=callbacks, **kwargs)
    trainer.fit(task, datamodule, ckpt_path=None if resume is None else str(resume))
    return task, trainer


def die_in(moment: str) -> None:
    """Be killed in the middle of writing the fourth checkpoint."""
    save, fsync, replace = torch.save, os.fsync, Path.replace
    written: list[str] = []

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def saving(content: Any, file: Any) -> None:
        save(content, file)
        written.append(file.name)
        if moment == 'write' and len(written) == 4:
            file.truncate(5000)
            die()

    def flushing(descriptor: int) -> None:
        if moment == 'flush' and len(written) == 4:
            die()
        fsync(descriptor)

    def renaming(path: Path, target: Path) -> Path:
        if moment == 'rename' and len(written) == 4:
            die()
        return replace(path, target)

    torch.save, os.fsync = saving, flushing
    Path.replace = renaming  # type: ignore[method-assign]


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('scenes', type=Path)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--resume', type=Path)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--die-in', choices=['write', 'flush', 'rename'])
    args = parser.parse_args()
    if args.die_in:
        die_in(args.die_in)
    run(
        args.scenes,
        args.folder,
        args.resume,
        slow=not args.die_in,
        workers=args.workers,
    )
