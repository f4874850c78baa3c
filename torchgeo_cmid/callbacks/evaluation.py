# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Judges the frozen backbone of a pre-training while it goes on."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchgeo.datamodules import BaseDataModule

from ..datamodules.applied import UnknownPixelsError, read_applied
from ..datamodules.parts import Parts
from ..models.find_backbone import find_backbone, find_teacher
from ..models.normalization import InputTransform, Pixels, from_standardised
from .figures import STATISTICS, judge
from .table import Rows

#: What stands in the progress bar: the first of these that there is.
SHOWN = ('knn', 'dense_knn_miou', 'correspondence')

Figures = Mapping[str, float]


class Evaluation(Callback):
    """Logs what frozen features are worth on labelled images, every some epochs.

    It works with CMID and with TorchGeo's own pre-training tasks. The memory is the
    part to train on of a data module of its own, the queries are its part to validate;
    both are read whole, as they are validated. Logged are ``val_knn`` and the like of
    the student, ``val_teacher_knn``, ..., and beside them ``val_statistics_knn``, ...
    of plain statistics of the image and ``val_initial_knn``, ... of the backbone as it
    was before the first step. In epochs without an evaluation the last figures are
    logged again, so that ``ModelCheckpoint(monitor='val_knn')`` works. The run goes on
    as if it had not been there, bit for bit.
    """

    def __init__(
        self,
        datamodule: BaseDataModule,
        every_n_epochs: int = 1,
        max_images: int | None = 2000,
        backbone: str | None = None,
        size: int | None = None,
        ignore_index: int | None = None,
        unit: float | None = None,
    ) -> None:
        """Initialize a new Evaluation instance.

        Args:
            datamodule: A data module with labels, or masks, or neither: then only what
                needs none is measured.
            every_n_epochs: Epochs from one evaluation to the next.
            max_images: Number of images at most, of both parts together. None: all.
            backbone: Path of the backbone in the task, such as 'model.encoder'. None:
                where tasks of ours and of TorchGeo keep it.
            size: Height and width to which images are resized. None: the task's.
            ignore_index: Class of pixels that do not count.
            unit: The raw number that stands for 1 in the images, such as 255. None: as
                the data module tells.

        Raises:
            ValueError: If *every_n_epochs* or *max_images* is less than 1.
        """
        given = {'every_n_epochs': every_n_epochs, 'max_images': max_images}
        for name, value in given.items():
            if value is not None and value < 1:
                raise ValueError(f'{name}={value} must be at least 1')
        self.datamodule = datamodule
        self.every_n_epochs = every_n_epochs
        self.max_images = max_images
        self.backbone = backbone
        self.size = size
        self.ignore_index = ignore_index
        self.unit = unit
        #: Figures of the statistics and of the initial backbone. Empty: none yet.
        self.baselines: dict[str, float] = {}
        #: The last figures of student and teacher.
        self.last: dict[str, float] = {}
        self._parts: Parts | None = None
        self._transform: InputTransform | None = None

    def state_dict(self) -> dict[str, Any]:
        """Keep the figures for a resumed run.

        Returns:
            Baselines and the last figures.
        """
        return {'baselines': self.baselines, 'last': self.last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the figures of the run that is resumed.

        Args:
            state_dict: What :meth:`state_dict` gave.
        """
        self.baselines = dict(state_dict['baselines'])
        self.last = dict(state_dict['last'])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge what a backbone has to be better than, once.

        Args:
            trainer: The trainer.
            pl_module: The task.

        Raises:
            ValueError: If the images do not fit the task.
        """
        self._parts = None
        self._transform = self._bring(trainer, pl_module)
        if self.baselines:
            return
        student = find_backbone(pl_module, self.backbone)
        networks = {STATISTICS: None, 'initial': student}
        rows = self._measure(trainer, pl_module, networks)
        self.baselines = {
            f'{name.rpartition(" ")[2]}_{figure}': value
            for name, figures in rows.items()
            for figure, value in figures.items()
        }
        self.last = dict(rows['initial'])

    def on_validation_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Judge where the run validates.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        if trainer.state.fn == 'fit' and not trainer.sanity_checking:
            self._log(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge where it does not.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        if not trainer.enable_validation:
            self._log(trainer, pl_module)

    def _log(self, trainer: Trainer, task: LightningModule) -> None:
        """Judge if it is time, and log all figures."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            networks: dict[str, nn.Module | None] = {
                'student': find_backbone(task, self.backbone)
            }
            teacher = None if self.backbone else find_teacher(task)
            if teacher is not None:
                networks['teacher'] = teacher
            rows = self._measure(trainer, task, networks)
            self.last = dict(rows['student'])
            for name, value in rows.get('teacher', {}).items():
                self.last[f'teacher_{name}'] = value
        shown = next((name for name in SHOWN if name in self.last), None)
        for name, value in {**self.baselines, **self.last}.items():
            task.log(
                f'val_{name}',
                value,
                on_step=False,
                on_epoch=True,
                prog_bar=name == shown,
                sync_dist=True,  # all have the same, and checkpoints ask each process
            )

    def _bring(self, trainer: Trainer, task: LightningModule) -> InputTransform | None:
        """Find out what brings images to those that the run trains on."""
        ours: Any = task
        channels = int(task.hparams['in_channels'])
        try:
            seen = Pixels.of_images(ours.pixel_contract.read(trainer, 'fit'), channels)
            given = read_applied(self.datamodule, 'validate', self.unit)
        except UnknownPixelsError as error:
            rank_zero_info(f'evaluation: images are taken as they are ({error})')
            return None
        if seen.unit and given.unit and seen.unit != given.unit:
            raise ValueError(
                f'{given.source} has images of unit {given.unit:g}, the run trains on '
                f'{seen.unit:g}: judge on images of that unit, or give Evaluation the '
                f'argument unit={seen.unit:g} if they are'
            )
        transform = from_standardised(seen, channels, given)
        rank_zero_info(f'evaluation: {transform.reason}')
        return transform

    def _measure(
        self,
        trainer: Trainer,
        task: LightningModule,
        networks: Mapping[str, nn.Module | None],
    ) -> Rows:
        """Judge in the first process, and tell the others."""
        rows: Rows | None = None
        failure: Exception | None = None
        if trainer.is_global_zero:
            try:
                rows = self._judge(task, networks)
            except Exception as error:
                failure = error
        rows, failure = trainer.strategy.broadcast((rows, failure))
        if failure is not None:
            raise failure
        assert rows is not None
        return rows

    def _judge(
        self, task: LightningModule, networks: Mapping[str, nn.Module | None]
    ) -> Rows:
        """Compute the figures, and leave modes and random states as they were."""
        arguments: Any = task.hparams
        inputs = getattr(task, 'inputs', nn.Identity())
        transform = self._transform
        modules = [
            module
            for network in networks.values()
            if network is not None
            for module in network.modules()
        ]
        modes = [module.training for module in modules]

        def prepare(images: Tensor) -> Tensor:
            if transform is not None:
                scale, offset = (
                    images.new_tensor(values).view(-1, 1, 1)
                    for values in (transform.scale, transform.offset)
                )
                images = images * scale + offset
            pixels: Tensor = inputs(images)
            return pixels

        with isolate_rng(), torch.inference_mode(False), torch.no_grad():
            torch.manual_seed(0)
            try:
                for module in modules:
                    module.training = False
                if self._parts is None:
                    self._parts = Parts(self.datamodule)
                return judge(
                    networks,
                    self._parts,
                    'val',
                    task.device,
                    in_channels=int(arguments['in_channels']),
                    prepare=prepare,
                    size=self.size or arguments.get('size'),
                    max_images=self.max_images,
                    ignore_index=self.ignore_index,
                    unlabelled=True,
                )
            finally:
                for module, mode in zip(modules, modes, strict=True):
                    module.training = mode
