# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What a run on several processes needs beyond Lightning's flags."""

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from timm.layers import BatchNormAct2d
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..distributed import world_size
from ..losses import QueueInfoNCE
from .norms import synchronise_batch_norms


class OneModel(Callback):
    """Lets several processes train one model as one process would."""

    _fused = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make the model fit for its strategy, before Lightning wraps it.

        Args:
            trainer: The trainer.
            pl_module: The task.
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            ValueError: If the strategy shards parameters.
        """
        prepare_strategy(pl_module, trainer.strategy)
        self._fused = has_fused_activations(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check what Lightning has made of the model, and seed this process.

        Args:
            trainer: The trainer.
            pl_module: The task.

        Raises:
            ValueError: If the conversion to synchronised batch norms has lost
                activations.
        """
        start_process(pl_module, self._fused, trainer.global_rank)


def prepare_strategy(model: nn.Module, strategy: Strategy) -> None:
    """Make the model fit for its strategy, before Lightning wraps it.

    On CPUs torch can not synchronise batch norms: there they always are, by ours.

    Args:
        model: The task.
        strategy: The trainer's strategy.

    Raises:
        ValueError: If it shards parameters.
    """
    if isinstance(strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            f'{type(strategy).__name__} shards parameters, but the teacher is the '
            'average of whole ones: use --trainer.strategy ddp, and a smaller '
            'batch_size with --trainer.accumulate_grad_batches if memory is short'
        )
    if world_size() == 1:
        return
    if strategy.root_device.type == 'cpu':
        synchronise_batch_norms(model)
    _keep_queues_alike(model, strategy.root_device)


def _keep_queues_alike(model: nn.Module, device: torch.device) -> None:
    """Let all processes start from one queue, and never send it again.

    The same keys enter it everywhere, but DistributedDataParallel sends all buffers, 64
    MiB here, to every process before each step.
    """
    names = []
    for name, module in model.named_modules():
        if isinstance(module, QueueInfoNCE):
            queue = module.queue.to(device)
            dist.broadcast(queue, src=0)
            module.queue.copy_(queue)
            names.append(f'{name}.queue')
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        model, names
    )


def has_fused_activations(model: nn.Module) -> bool:
    """Tell whether batch norms contain their activation, as in EfficientNets of timm.

    Args:
        model: The model.

    Returns:
        Whether there is any such layer.
    """
    return any(isinstance(module, BatchNormAct2d) for module in model.modules())


def start_process(model: nn.Module, fused: bool, rank: int) -> None:
    """Check what Lightning has made of the model, and seed this process.

    Args:
        model: The task.
        fused: Whether batch norms contained their activation before.
        rank: Rank of this process.

    Raises:
        ValueError: If the conversion to synchronised batch norms has lost activations.
    """
    if fused and not has_fused_activations(model):
        raise ValueError(
            'sync_batchnorm replaces batch norms that contain their activation '
            f'({BatchNormAct2d.__name__}) by ones that do not: leave '
            '--trainer.sync_batchnorm out, or choose a model with plain batch norms, '
            'such as a ResNet'
        )
    if rank:  # --seed_everything is the same for all: other patches, other views
        torch.manual_seed(torch.initial_seed() + rank)
