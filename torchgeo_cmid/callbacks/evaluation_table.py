# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What the commands ``validate`` and ``test`` say of a backbone: a table of figures."""

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torchgeo.datamodules import BaseDataModule

from ..datamodules.parts import Parts
from ..models.find_backbone import find_backbone, find_teacher
from ..networks.backbone import SpatialBackbone
from .figures import STATISTICS, judge
from .table import Rows, as_text, write


class EvaluationTable(Callback):
    """Judges the frozen backbone of a task of ours by the data module of a command.

    In ``validate`` the memory is the part to train on and the queries are the part to
    validate; in ``test`` the queries are the test part, and what is chosen is chosen on
    the part to validate. Beside the student stand its teacher, a backbone of random
    weights and the statistics of the images. Images are resized to the task's size. On
    data without labels only what needs none is measured.
    """

    def __init__(self, max_images: int | None = None) -> None:
        """Initialize a new EvaluationTable instance.

        Args:
            max_images: Number of images at most, of all parts together. None: all.

        Raises:
            ValueError: If *max_images* is less than 1.
        """
        if max_images is not None and max_images < 1:
            raise ValueError(f'max_images={max_images} must be at least 1, or None')
        self.max_images = max_images
        #: Figures by network and name. None: nothing was judged yet.
        self.rows: Rows | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A command begins.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        self.rows = None

    def on_validation_epoch_start(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> None:
        """Judge on the part to validate.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        if trainer.state.fn == 'validate':
            self._judge(trainer, pl_module, 'val')

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge on the test part.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        self._judge(trainer, pl_module, 'test')

    def teardown(
        self, trainer: Trainer, pl_module: LightningModule, stage: str
    ) -> None:
        """Refuse to end without a figure.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            ValueError: If the data module has nothing to judge on.
        """
        if self.rows is None and stage in ('validate', 'test'):
            name = type(getattr(trainer, 'datamodule', None)).__name__
            command = 'test' if stage == 'test' else 'validate'
            raise ValueError(
                f'{name} gave no image to {command} on, so there is no '
                'figure: give a data module that has such a part'
            )

    def _judge(self, trainer: Trainer, task: LightningModule, part: str) -> None:
        """Judge in the first process, tell the others, and show the table."""
        datamodule: BaseDataModule = trainer.datamodule  # type: ignore[attr-defined]
        stage = {'val': 'validate', 'test': 'test'}[part]
        ours: Any = task
        ours.pixel_contract.settle(trainer, task, stage)
        rows: Rows | None = None
        failure: Exception | None = None
        if trainer.is_global_zero:
            try:
                rows = self._measure(task, Parts(datamodule, stage), part)
            except Exception as error:
                failure = error
        rows, failure = trainer.strategy.broadcast((rows, failure))
        if failure is not None:
            raise failure
        self.rows = cast(Rows, rows)
        own = {
            f'{part}_{name}': value
            for network, figures in self.rows.items()
            if network == 'student'
            for name, value in figures.items()
        }
        # not into the files of loggers: the table has files of its own
        task.log_dict(own, logger=False, rank_zero_only=True)
        if trainer.is_global_zero:
            folder = write(self.rows, trainer.default_root_dir, stage)
            name = type(datamodule).__name__
            print(f'\nfrozen features on {name}, {stage}\n{as_text(self.rows)}')
            print(f'written to {folder}/table.csv and table.json')

    def _measure(self, task: LightningModule, parts: Parts, part: str) -> Rows:
        """Compute the figures, and leave all random states as they were."""
        arguments: Any = task.hparams
        channels, size = arguments['in_channels'], arguments['size']
        inputs = task.get_submodule('inputs')

        def prepare(images: Tensor) -> Tensor:
            pixels: Tensor = inputs(images)  # a hook brings them to the backbone's
            return pixels

        devices = [task.device] if task.device.type == 'cuda' else []
        # what is made here may be used where gradients are wanted
        with torch.random.fork_rng(devices), torch.inference_mode(False):
            torch.manual_seed(0)
            with torch.enable_grad():  # it is measured by them
                random = SpatialBackbone(arguments['model'], channels, size).backbone
            networks: dict[str, nn.Module | None] = {
                STATISTICS: None,
                'random': random.to(task.device).eval(),
                'student': find_backbone(task).eval(),
            }
            teacher = find_teacher(task)
            if teacher is not None:
                networks['teacher'] = teacher.eval()
            with torch.no_grad():
                return judge(
                    networks,
                    parts,
                    part,
                    task.device,
                    in_channels=channels,
                    prepare=prepare,
                    size=size,
                    max_images=self.max_images,
                    ignore_index=None,
                    unlabelled=True,
                )
