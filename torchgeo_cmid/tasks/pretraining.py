# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What a run of CMID asks of Lightning: steps, schedules, and what is logged."""

import math
import time
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import lightning.pytorch.utilities.types
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchgeo.datasets.utils import Sample

from .. import schedules
from ..distributed import global_means, world_size
from ..metrics import RankMe
from ..runs.finite import require_finite
from ..runs.interruption import SaveOnSigterm, protect, refuse_old_run
from ..runs.processes import has_fused_activations, prepare_strategy, start_process
from ..runs.randomness import seeded
from ..transforms.masked_views import ViewTask

Pair = tuple[Tensor, Tensor]


class DistillationTask(ViewTask):
    """Base of a task in which a student learns from two views and a moving teacher.

    A subclass gives the student, the losses and the teacher's update; what is here runs
    them: one training step, validation on fixed views, the optimizer, the
    schedules of section 4 of `CMID <https://arxiv.org/abs/2304.09670>`__, and the
    measures by which a run is watched.
    """

    monitor = 'train_loss'

    total_steps = 1
    seed = 0
    _data_wait = 0.0
    _step_started = _step_ended = 0.0

    @abstractmethod
    def compute_losses(
        self,
        views: Pair,
        masks: Pair,
        grids: Pair,
        valid: Pair | None = None,
        *,
        teacher_temperature: float,
    ) -> dict[str, Tensor]:
        """Compute the losses of a batch, with their weighted sum as ``loss``."""

    @abstractmethod
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher's parameters towards the student's."""

    def configure_metrics(self) -> None:
        """Initialize the effective rank of the embedding."""
        self.rank_me = RankMe()

    def prepare_data(self) -> None:
        """Refuse to overwrite an earlier run, before anything is written."""
        if self.trainer.training:
            refuse_old_run(self.trainer)

    def configure_callbacks(self) -> list[Callback]:
        """Save a checkpoint when a scheduler asks the run to end.

        Returns:
            The callback that does.
        """
        return [SaveOnSigterm()]

    def setup(self, stage: str) -> None:
        """Compare the bands of the data module with those of the model.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            ValueError: If they differ, or if the strategy shards parameters.
        """
        prepare_strategy(self, self.trainer.strategy)
        self._fused_activations = has_fused_activations(self.student)
        protect(self.trainer)
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

    def configure_optimizers(
        self,
    ) -> 'lightning.pytorch.utilities.types.OptimizerLRScheduler':
        """Initialize the optimizer and the learning rate of each step.

        Returns:
            Optimizer and learning rate scheduler.

        Raises:
            ValueError: If the run has no end, or trains on one patch at a time.
        """
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                'the schedules need the end of the run: set max_epochs or max_steps'
            )
        self.total_steps = int(steps)
        self.trainer.fit_loop.setup_data()  # with max_steps alone nothing has asked yet
        batches = self.trainer.num_training_batches
        if math.isinf(batches):
            raise ValueError(
                'the schedules need epochs, but the data loader has no length: set '
                '--trainer.limit_train_batches to a number of batches'
            )
        accumulated = self.trainer.accumulate_grad_batches
        warmup_steps = self.hparams['warmup_epochs'] * math.ceil(batches / accumulated)
        self._check_batches(batches)

        lr = self.hparams['lr']
        if lr is None:
            batch_size = self._global_batch_size() * accumulated
            lr = 0.00625 * math.sqrt(batch_size / 256)
            rank_zero_info(f'lr = {lr:.3g}, for a global batch of {batch_size} patches')

        def factor(step: int) -> float:
            min_lr: float = self.hparams['min_lr']
            steps = self.total_steps, warmup_steps
            value = schedules.learning_rate(step, *steps, lr, min_lr)
            return float(value / lr)

        optimizer = create_optimizer_v2(
            self.student,
            self.hparams['optimizer'],
            lr=lr,
            weight_decay=self.hparams['weight_decay'],
        )
        scheduler = LambdaLR(optimizer, factor)
        return {
            'optimizer': optimizer,
            'lr_scheduler': {'scheduler': scheduler, 'interval': 'step'},
        }

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
        patches = self.patches(batch)
        batch_size = len(batch['image'])
        if batch_size * world_size() == 1:
            raise ValueError(
                'a global batch of one patch can not be trained on: raise batch_size, '
                'or drop the last batch of an epoch'
            )
        temperature = self.current_teacher_temperature
        with seeded(self.device, *self._numbers(batch_idx)):
            drawn = self.draw_views(*patches)
        losses = self.compute_losses(*drawn, teacher_temperature=temperature)
        means = global_means(losses)
        require_finite(self.trainer, losses, means['loss'], batch)
        self.log_dict(
            {f'train_{name}': value for name, value in means.items()}
            | {
                'teacher_temperature': temperature,
                'momentum': self.current_momentum,
                'lr': self.optimizers().param_groups[0]['lr'],  # type: ignore[union-attr]
                'data_wait': self._data_wait,
            },
            batch_size=batch_size,
        )
        self._warn_of_degenerate_assignments(means)
        return losses['loss']

    def _numbers(self, batch_idx: int) -> tuple[int, ...]:
        """What the views and masks of a batch follow from."""
        return self.seed, self.current_epoch, batch_idx, self.global_rank

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the seed of the views and masks into a checkpoint.

        Args:
            checkpoint: The checkpoint.
        """
        checkpoint['seed'] = self.seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed of a checkpoint.

        Args:
            checkpoint: The checkpoint.
        """
        self.seed = checkpoint.get('seed', self.seed)

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
        patches = self.patches(batch)
        with seeded(self.device, batch_idx):
            drawn = self.draw_views(*patches)
        losses = self.compute_losses(
            *drawn, teacher_temperature=self.current_teacher_temperature
        )
        self.rank_me.update(self(drawn[0][0]))
        self.log_dict(
            {f'val_{name}': value for name, value in losses.items()},
            batch_size=len(batch['image']),
            sync_dist=True,
        )

    def on_validation_epoch_end(self) -> None:
        """Log the effective rank of the embedding, and warn when it collapses."""
        rank = self.rank_me.compute()
        self.rank_me.reset()
        self.log('val_rank_me', rank)
        if rank < 2 and not self.trainer.sanity_checking:
            rank_zero_warn(
                f'the features have collapsed: the effective rank of the embedding is '
                f'{rank:.2f} of {self.student.num_features}. Lower the learning rate, '
                'or raise the batch size.'
            )

    def test_step(self, batch: Sample, batch_idx: int, dataloader_idx: int = 0) -> None:
        """No-op, does nothing."""

    def predict_step(
        self, batch: Sample, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """No-op, does nothing."""

    # The schedules, and what is measured along the way

    @property
    def current_momentum(self) -> float:
        """Momentum m(n) of the teacher's next update."""
        return schedules.cosine(
            self.trainer.global_step,
            self.total_steps,
            self.hparams['momentum'],
            self.hparams['final_momentum'],
        )

    @property
    def current_teacher_temperature(self) -> float:
        """Temperature T(e) of the teacher's assignments in this epoch."""
        return schedules.teacher_temperature(
            self.current_epoch,
            self.hparams['warmup_teacher_temperature_epochs'],
            self.hparams['warmup_teacher_temperature'],
            self.hparams['teacher_temperature'],
        )

    def _global_batch_size(self) -> int:
        """Number of patches in a batch over all processes."""
        loader = self.trainer.train_dataloader
        batch_size = getattr(loader, 'batch_size', None)
        if batch_size is None:
            batch_size = getattr(
                getattr(loader, 'batch_sampler', None), 'batch_size', 0
            )
        if not batch_size:
            raise ValueError(
                f'{type(loader).__name__} has no batch_size: CMID needs to know the '
                'number of patches in a batch'
            )
        return int(batch_size) * self.trainer.world_size

    def _check_batches(self, batches: float) -> None:
        """Refuse a global batch of one; warn of a queue that outlives an epoch."""
        batch_size = self._global_batch_size()
        if batch_size == 1:
            raise ValueError(
                'a global batch of one patch can not be trained on: raise batch_size'
            )
        queue_size = self.hparams['queue_size']
        patches = batches * batch_size
        if self.hparams['global_branch'] == 'moco' and queue_size > patches:
            rank_zero_warn(
                f'queue_size={queue_size} holds more keys than an epoch has '
                f'patches ({patches}): older keys of the same patch become negatives'
            )

    def on_fit_start(self) -> None:
        """Check what Lightning has made of the model, and seed this process."""
        start_process(self, self._fused_activations, self.trainer.global_rank)

    def on_train_epoch_start(self) -> None:
        """Begin to measure the time spent waiting for data."""
        self._step_ended = self._step_started = time.perf_counter()

    def on_validation_end(self) -> None:
        """Do not count the validation as waiting."""
        self._step_ended = self._step_started = time.perf_counter()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Measure how long this batch was waited for.

        Args:
            batch: The batch.
            batch_idx: Its index.
        """
        now = time.perf_counter()
        elapsed = now - self._step_started
        self._data_wait = (now - self._step_ended) / elapsed if elapsed else 0.0
        self._step_started = now

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """From here on the next batch is waited for.

        Args:
            outputs: The output of the step.
            batch: The batch.
            batch_idx: Its index.
        """
        self._step_ended = time.perf_counter()

    def _warn_of_degenerate_assignments(self, losses: Mapping[str, Tensor]) -> None:
        """Warn when the local branch goes uniform or falls on one prototype."""
        if (
            'local' not in losses
            or self.trainer.global_step % self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        ):
            return
        if losses['assignment_entropy'] > 0.99:
            rank_zero_warn(
                'the local branch has gone uniform: the teacher assigns each cell to '
                'all prototypes alike. Lower teacher_temperature or the learning rate.'
            )
        if losses['mean_assignment_entropy'] < 0.1:
            rank_zero_warn(
                'the local branch has collapsed: the teacher assigns all cells to the '
                'same prototypes. Lower center_momentum or the learning rate.'
            )
