# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Means and batches over all processes; with one process they do nothing."""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together.

    Returns:
        The size of the default process group, 1 without one.
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def global_mean(x: Tensor) -> Tensor:
    """Mean of a per-process mean over all processes, with the gradient of one process.

    DistributedDataParallel averages gradients over processes. The value returned is
    the global mean, while its gradient is passed on to the local *x* unscaled, so that
    the average over processes is the gradient of the global mean.

    Args:
        x: Mean over the local batch, any shape, the same on every process.

    Returns:
        Mean over the global batch, same shape.
    """
    if world_size() == 1:
        return x
    mean = x.detach().clone()
    dist.all_reduce(mean)
    mean /= world_size()
    return x + (mean - x.detach())


@torch.no_grad()
def batch_share(count: Tensor) -> Tensor:
    """Weight that makes means over this process's items parts of the global mean.

    DistributedDataParallel averages over processes as if each had as many items.

    Args:
        count: Number of items on this process, such as masked pixels, ().

    Returns:
        The number over its mean over processes, (): exactly 1 where all have as many, 0
        where none has any.
    """
    mean = global_mean(count)
    return count / mean.clamp(min=torch.finfo(mean.dtype).tiny)


@torch.no_grad()
def gather_batch(x: Tensor) -> Tensor:
    """Concatenate the batches of all processes, in the order of their ranks.

    Args:
        x: Local batch, (B, ...), of the same shape on every process.

    Returns:
        Global batch, (world size * B, ...), without gradient.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    batches = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(batches, x.contiguous())
    return torch.cat(batches)
