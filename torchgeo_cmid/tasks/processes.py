# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What a run on several processes needs beyond Lightning's flags."""

import torch
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
)
from timm.layers import BatchNormAct2d
from torch import nn

from ..distributed import world_size
from ..models.norms import synchronise_batch_norms


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
    if world_size() > 1 and strategy.root_device.type == 'cpu':
        synchronise_batch_norms(model)


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
