# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What a pre-training is to Lightning: its step, its schedules, its optimizer."""

import math
from abc import abstractmethod
from typing import Any

import lightning.pytorch.utilities.types
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_info
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torchgeo.datamodules import BaseDataModule
from torchgeo.datasets.utils import Sample
from torchgeo.tasks import BaseTask

from ..callbacks.evaluation_table import EvaluationTable
from ..callbacks.pixel_contract import PixelContract, see_pixels
from ..distributed import global_mean, global_means, world_size
from ..metrics import RankMe
from ..models.loading import drop_wrappers
from ..models.normalization import (
    InputNormalization,
    Pixels,
    attach,
    find_normalizations,
    find_pixels,
    leave_images,
    note_pixels,
)
from ..networks import Student, Teacher
from ..rules import PUBLISHED, RULES, Scale, published, settle
from ..runs.collapse import CollapseAlarm
from ..runs.data_wait import DataWait
from ..runs.finite import require_finite
from ..runs.interruption import KeepFiles, keep_earlier_files, refuse_old_run
from ..runs.processes import OneModel
from ..runs.randomness import seeded
from ..runs.resumed_epoch import ResumedEpoch
from ..runs.signals import SaveOnSigterm
from ..schedules import Schedules
from ..transforms import MaskedViews, TwoMaskedViews
from ..transforms.masked_views import join_dates
from .ranges import check_ranges

Pair = tuple[Tensor, Tensor]


def scale_of(trainer: Trainer) -> Scale:
    """Ask a trainer how long its run is.

    Args:
        trainer: The trainer, about to fit.

    Returns:
        The scale of the run.

    Raises:
        ValueError: If the run or its epochs have no end, if the number of patches in a
            batch is not known, or if it is one.
    """
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        raise ValueError(
            'the schedules need the end of the run: set max_epochs or max_steps'
        )
    trainer.fit_loop.setup_data()  # with max_steps alone nothing has asked yet
    batches = trainer.num_training_batches
    if math.isinf(batches):
        raise ValueError(
            'the schedules need epochs, but the data loader has no length: set '
            '--trainer.limit_train_batches to a number of batches'
        )
    batch_size = _global_batch_size(trainer)
    if batch_size == 1:
        raise ValueError(
            'a global batch of one patch can not be trained on: raise batch_size'
        )
    accumulated = trainer.accumulate_grad_batches
    return Scale(
        steps=int(steps),
        steps_per_epoch=math.ceil(batches / accumulated),
        patches=int(batches) * batch_size,
        batch_size=batch_size * accumulated,
    )


def _global_batch_size(trainer: Trainer) -> int:
    """Number of patches in a batch over all processes."""
    loader = trainer.train_dataloader
    batch_size = getattr(loader, 'batch_size', None)
    if batch_size is None:
        batch_size = getattr(getattr(loader, 'batch_sampler', None), 'batch_size', 0)
    if not batch_size:
        raise ValueError(
            f'{type(loader).__name__} has no batch_size: CMID needs to know the number '
            'of patches in a batch'
        )
    return int(batch_size) * trainer.world_size


class PretrainingTask(BaseTask):
    """The run of a task in which a student learns from two views and a moving teacher.

    A subclass gives student, teacher, views and losses. Here is what happens in a step,
    and what of it follows from how long the run is.
    """

    monitor = 'train_loss'

    student: Student
    teacher: Teacher
    views: TwoMaskedViews
    pixels: Pixels | None

    #: What the rules have decided for the run, by argument.
    rules: dict[str, Any]
    #: All arguments, with a number for each that is left open.
    settings: dict[str, Any]
    schedules: Schedules
    pixel_contract: PixelContract

    def __init__(self) -> None:
        """Initialize a new PretrainingTask instance."""
        super().__init__()
        self.rules = {}
        self.scale = Scale(steps=1, steps_per_epoch=1, patches=0, batch_size=0)
        self.apply_settings()
        self.seed = 0
        self.interruption = SaveOnSigterm()
        self._drawn = {'epoch': 0, 'batches': 0}
        self._gradients: dict[str, Tensor] = {}
        # images pass it on their way to the views; where the pixels that a backbone was
        # trained on are known, a hook brings them to these
        self.inputs = nn.Identity()

    @abstractmethod
    def compute_losses(
        self,
        views: Pair,
        masks: Pair,
        grids: Pair,
        valid: Pair | None = None,
        *,
        teacher_temperature: float | Tensor,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch, with their weighted sum as ``loss``."""

    @abstractmethod
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's parameters towards the student's."""

    def configure_metrics(self) -> None:
        """Initialize the effective rank of the embedding."""
        self.rank_me = RankMe()

    # The run: one step, the teacher after it, validation on fixed views

    def training_step(
        self, batch: Sample, batch_idx: int, dataloader_idx: int = 0
    ) -> Tensor:
        """Compute the training loss and additional metrics.

        Args:
            batch: The output of your DataLoader.
            batch_idx: Integer displaying index of this batch.
            dataloader_idx: Index of the current dataloader.

        Returns:
            The loss tensor.

        Raises:
            ValueError: If the bands are not *in_channels*, or twice as many, if the
                global batch is a single patch, or if the loss is not finite.
        """
        batch_size = len(batch['image'])
        if batch_size * world_size() == 1:
            raise ValueError(
                'a global batch of one patch can not be trained on: raise batch_size, '
                'or drop the last batch of an epoch'
            )
        numbers = self.seed, self.current_epoch, self._count_batch(), self.global_rank
        drawn = self._draw_views(batch, *numbers)
        losses = self.compute_losses(
            *drawn, teacher_temperature=self.current_teacher_temperature
        )
        means = global_means(losses)
        require_finite(self.trainer, losses, means['loss'], batch)
        self.log_dict(
            {f'train_{name}': value for name, value in means.items()}
            | {
                'teacher_temperature': self.current_teacher_temperature,
                'momentum': self.current_momentum,
                'lr': self.optimizers().param_groups[0]['lr'],  # type: ignore[union-attr]
            },
            batch_size=batch_size,
        )
        return losses['loss']

    def _count_batch(self) -> int:
        """Number the batches of an epoch, in a run that goes on from anywhere.

        Lightning's *batch_idx* begins at 0 again in an epoch that is resumed.
        """
        if self._drawn['epoch'] != self.current_epoch:
            self._drawn = {'epoch': self.current_epoch, 'batches': 0}
        number = self._drawn['batches']
        self._drawn['batches'] += 1
        return number

    def _draw_views(self, batch: Sample, *numbers: int) -> MaskedViews:
        """Draw views and masks from numbers that say which batch it is."""
        batch.update(join_dates(batch, self.hparams['in_channels']))
        batch['image'] = self.inputs(batch['image'])
        # that of the parameters, single precision at least
        dtype = torch.promote_types(self.student.mask_token.dtype, torch.float32)
        with seeded(self.device, *numbers):
            drawn: MaskedViews = self.views(batch, dtype)
        return drawn

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Update the student, and the teacher after it.

        Args:
            epoch: Current epoch.
            batch_idx: Index of the current batch.
            optimizer: The optimizer.
            optimizer_closure: Computes the gradients.
        """
        momentum = self.current_momentum  # before the step is counted
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.update_teacher(momentum)
        # Lightning would keep the gradients through the next forward pass
        optimizer.zero_grad()

    def validation_step(
        self, batch: Sample, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Compute the losses on views and masks that are the same in each epoch.

        Args:
            batch: The output of your DataLoader.
            batch_idx: Integer displaying index of this batch.
            dataloader_idx: Index of the current dataloader.
        """
        drawn = self._draw_views(batch, batch_idx)
        losses = self.compute_losses(
            *drawn, teacher_temperature=self.current_teacher_temperature
        )
        self.rank_me.update(self(drawn.views[0]))
        self.log_dict(
            {f'val_{name}': value for name, value in losses.items()},
            batch_size=len(batch['image']),
            sync_dist=True,
        )

    def on_validation_epoch_end(self) -> None:
        """Log the effective rank of the embedding."""
        self.log('val_rank_me', self.rank_me.compute())
        self.rank_me.reset()

    def test_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """No-op, does nothing."""

    def predict_step(
        self, batch: Sample, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """No-op, does nothing."""

    # The optimizer, and the schedules that follow from the length of the run

    def configure_optimizers(
        self,
    ) -> 'lightning.pytorch.utilities.types.OptimizerLRScheduler':
        """Initialize the optimizer and the learning rate of each step.

        Returns:
            Optimizer and learning rate scheduler.

        Raises:
            ValueError: If the run has no end, or trains on one patch at a time.
        """
        self._plan()
        optimizer = create_optimizer_v2(
            self.student,
            self.hparams['optimizer'],
            lr=self.settings['lr'],
            weight_decay=self.hparams['weight_decay'],
        )

        scheduler = LambdaLR(optimizer, self._factor)
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'},
        }

    def _plan(self) -> None:
        """Ask the trainer how long the run is, and decide what follows from that.

        A run that goes on keeps what was decided when it began.
        """
        self.scale = scale_of(self.trainer)
        for name, (value, reason) in settle(self.hparams, self.scale).items():
            if name not in self.rules:
                self.rules[name] = value
                if name != 'lr' and value is not None:
                    rank_zero_info(f'{name} {value:.4g}: {reason}')
        self.apply_settings()
        self._planned = True

    def apply_settings(self) -> None:
        """Take what is typed, else what the rules say, else the published number."""
        decided = {
            name: value
            for name, value in self.rules.items()
            if self.hparams[name] is None
        }
        self.settings = published(self.hparams) | decided
        scale = self.scale
        self.schedules = Schedules(self.settings, scale.steps, scale.steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """Number S of optimizer steps of the run."""
        return self.scale.steps

    @property
    def current_momentum(self) -> float:
        """Momentum m(n) of the teacher's next update."""
        return self.schedules.momentum(self.trainer.global_step)

    @property
    def current_teacher_temperature(self) -> float | Tensor:
        """Temperature T(e) of the teacher's assignments in this epoch."""
        return self.schedules.teacher_temperature(self.current_epoch)

    # What keeps the run safe

    def prepare_data(self) -> None:
        """Look after the files of an earlier run, before anything is written."""
        if self.trainer.training:
            refuse_old_run(self.trainer)
        keep_earlier_files(self.trainer)

    def configure_callbacks(self) -> list[Callback]:
        """Watch the run, and save a checkpoint when a scheduler asks it to end.

        Returns:
            The callbacks that do.
        """
        inherited: Any = super().configure_callbacks()
        self.interruption = SaveOnSigterm()
        safe = (OneModel(), ResumedEpoch(), self.interruption, KeepFiles())
        own = [*inherited, *safe, DataWait(), CollapseAlarm()]
        judged = self.trainer.state.fn in ('validate', 'test')
        datamodule = getattr(self.trainer, 'datamodule', None)
        if judged and isinstance(datamodule, BaseDataModule):  # its parts are known
            own.append(EvaluationTable())
        return own

    def setup(self, stage: str) -> None:
        """Compare the bands of the data module with those of the model.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            ValueError: If they differ, or if the precision is half throughout.
        """
        precision = str(self.trainer.precision)
        if precision in ('bf16-true', '16-true'):
            raise ValueError(
                f"precision='{precision}' would round the teacher's small steps away: "
                f'take --trainer.precision {precision.replace("true", "mixed")}, which '
                'keeps parameters in single precision'
            )
        self._settled = self._planned = False
        self.rules = {}
        # the same in all processes; a checkpoint brings its own
        self.seed = self.trainer.strategy.broadcast(torch.initial_seed())
        datamodule = getattr(self.trainer, 'datamodule', None)
        bands = getattr(datamodule, 'in_channels', None)
        if bands is not None and bands != self.hparams['in_channels']:
            raise ValueError(
                f'in_channels={self.hparams["in_channels"]} of the model, but '
                f'{type(datamodule).__name__} gives {bands} bands: set '
                f'--model.init_args.in_channels {bands}'
            )

    def on_fit_start(self) -> None:
        """Find out what the run is, and what the images are."""
        if not self._planned:  # an optimizer was given: ours was not asked for
            self._plan()
            rank_zero_info(
                'the optimizer is the one that was given: its learning rate and '
                'schedule hold, and lr, min_lr, warmup_epochs, weight_decay and '
                'optimizer of the task are not used; the teacher keeps its schedule'
            )
        self._settle_pixels('fit')

    def on_train_start(self) -> None:
        """Go on within a step of several batches, and with the learning rate asked."""
        self._settle_pixels('fit')  # a tuner trains before the fit has started
        found = self.hparams['lr'] not in (None, self.settings['lr'])  # by a finder
        if found:
            self.apply_settings()
        for config in self.trainer.lr_scheduler_configs:
            if self._factor in getattr(config.scheduler, 'lr_lambdas', []):
                self._follow_lr(config.scheduler)
                self._say_lr(found)
        for name, gradient in self._gradients.items():
            parameter = self.student.get_parameter(name)
            parameter.grad = gradient.to(parameter)
        self._gradients = {}

    def _say_lr(self, found: bool) -> None:
        """Say the learning rate that is reached: a warm-up may be cut short."""
        step, rate = self.schedules.peak_learning_rate(self.trainer.global_step)
        when = f'at most, in step {step + 1} of {self.scale.steps}'
        lr, warmup = self.settings['lr'], self.schedules.warmup_steps
        if found:
            reason = ', as was set before the first step'
        elif self.hparams['lr'] is None:
            reason = f', for a global batch of {self.scale.batch_size} patches'
        elif self.schedules.peak_learning_rate()[1] < 0.99 * lr:
            reason = f': {lr:g} is not reached, the warm-up takes {warmup:g} steps'
        else:
            reason = ', as is set'
        rank_zero_info(f'lr = {rate:.3g} {when}{reason}')

    def _follow_lr(self, scheduler: Any) -> None:
        """Take up the rate of this run: a checkpoint has that of a run as long as its.

        A learning rate that is typed wins over that of a checkpoint.
        """
        lr = self.settings['lr']
        groups = scheduler.optimizer.param_groups
        if self.hparams['lr'] is not None and groups[0]['initial_lr'] != lr:
            scheduler.base_lrs = [lr] * len(groups)
            for group in groups:
                group['initial_lr'] = lr
        for group, base in zip(groups, scheduler.base_lrs, strict=True):
            group['lr'] = base * self._factor(scheduler.last_epoch)

    def _factor(self, step: int) -> float:
        """Learning rate of a step as a share of that after the warm-up."""
        rate: float = self.settings['lr']
        return self.schedules.learning_rate(step) / rate

    def on_validation_start(self) -> None:
        """Find out what the images are, if no training has."""
        self._settle_pixels('validate')

    def _expect(self, pixels: Pixels) -> InputNormalization:
        """Bring images to the pixels that the backbone was trained on."""
        in_channels = self.hparams['in_channels']
        hook = InputNormalization(type(self).__name__, in_channels, pixels)
        attach(self, 'inputs', hook)
        return hook

    def _settle_pixels(self, stage: str) -> None:
        """Find out which pixels the student sees, and choose the recipe for them, once.

        The callback decides first what is done to the images.
        """
        if self._settled:
            return
        self._settled = True
        in_channels = self.hparams['in_channels']
        self.pixel_contract.settle(self.trainer, self, stage)
        hook = find_normalizations(self).get('inputs')
        contract = self.pixel_contract
        seen, reason = see_pixels(contract, self.trainer, stage, in_channels, hook)
        if stage == 'fit' and seen is not None:
            self.pixels = seen
            for network in (self.student, self.teacher):
                note_pixels(network.backbone, seen)
            if hook is None:  # for runs on other data that come after this one
                trained = leave_images(in_channels, 'trained on these', fulfils=True)
                self._expect(seen).decide(trained)
        rank_zero_info(f'pixels: {reason}')
        known: dict[str, Any] = {}
        if seen is not None:
            mean, std = seen.spread(in_channels)
            known = {'mean': mean, 'std': std, 'unit': seen.unit}
        rank_zero_info(f'views: {self.views.choose_recipe(**known)}')

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what views and masks follow from into a checkpoint, and the pixels.

        Args:
            checkpoint: The checkpoint.
        """
        # a network that was compiled for this run may go on as it is
        checkpoint['state_dict'] = drop_wrappers(checkpoint['state_dict'])
        checkpoint['seed'] = self.seed
        checkpoint['drawn'] = dict(self._drawn)
        checkpoint['rules'] = dict(self.rules)
        gradients = {  # of the batches of a step that is not complete
            name: global_mean(parameter.grad)
            for name, parameter in self.student.named_parameters()
            if parameter.grad is not None
        }
        if gradients:
            checkpoint['gradients'] = gradients
        if self.pixels is not None:
            checkpoint['pixels'] = self.pixels.to_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the views, masks and pixels of a checkpoint.

        Args:
            checkpoint: The checkpoint.
        """
        own = self.state_dict()
        named = dict(zip(drop_wrappers(own), own, strict=True))
        checkpoint['state_dict'] = {
            named.get(name, name): tensor
            for name, tensor in drop_wrappers(checkpoint['state_dict']).items()
        }
        rules = checkpoint.get('rules', PUBLISHED)
        self.rules = {name: rules[name] for name in RULES if name in rules}
        check_ranges({**self.hparams, **self.rules})
        self.apply_settings()
        self.seed = checkpoint.get('seed', self.seed)
        self._gradients = checkpoint.get('gradients', {})
        loops = checkpoint['loops']['fit_loop']['epoch_loop.batch_progress']
        self._drawn = checkpoint.get(
            'drawn',  # Lightning's own number, before version 0.2
            {'epoch': checkpoint['epoch'], 'batches': loops['current']['ready']},
        )
        pixels = find_pixels(checkpoint, {})
        if pixels is not None:
            self._expect(pixels)
        found = 'not known' if pixels is None else 'those of the data module'
        stated = {
            'pixels': f'mean and std are {found}, the unit is not known',
            'rules': 'the published numbers hold where no other is typed',
        }
        lacking = [f"'{k}': {v}" for k, v in stated.items() if k not in checkpoint]
        if lacking:
            rank_zero_info(
                'the checkpoint, of before version 0.2, lacks ' + '; '.join(lacking)
            )
