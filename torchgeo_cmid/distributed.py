# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Means and batches over all processes; with one process they do nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together.

    Returns:
        The size of the default process group, 1 without one.
    """
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _GlobalMean(torch.autograd.Function):
    """Mean over all processes, the same bit for bit; each keeps its own gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mean = x.clone()
        dist.all_reduce(mean)
        return mean.div_(world_size())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


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
    mean: Tensor = _GlobalMean.apply(x)
    return mean


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


def batch_mean(x: Tensor, share: Tensor | None = None) -> Tensor:
    """Mean over the local batch, as a part of that over the global batch.

    Args:
        x: Local batch, (B, ...); B may differ, as in the last batch of an epoch.
        share: Weight of this process's batch, (), see :func:`batch_share`. None: it is
            found out.

    Returns:
        Mean, (...), whose mean over all processes is that of the global batch.
    """
    if share is None:
        share = batch_share(x.new_full((), len(x)))
    return x.mean(dim=0) * share.to(x)


class GlobalCounts:
    """Numbers of items on each process, exchanged in one message.

    What is known before the first loss, such as the patches of a batch and the pixels
    that are masked, so that no loss has to ask the other processes for one number.
    """

    @torch.no_grad()
    def __init__(self, counts: Mapping[str, Tensor]) -> None:
        """Tell all processes.

        Args:
            counts: Numbers by name, () each, whole, the same names on every process.
        """
        own = torch.stack([count.to(torch.int64) for count in counts.values()])
        self._names = {name: i for i, name in enumerate(counts)}
        rows = [own]
        if world_size() > 1:
            rows = [torch.empty_like(own) for _ in range(world_size())]
            dist.all_gather(rows, own)
        self._own, self._all = own, torch.stack(rows)  # (names), (processes, names)

    def share(self, name: str) -> Tensor:
        """Weight that makes means over this process's items parts of the global mean.

        Args:
            name: Name of the items.

        Returns:
            As of :func:`batch_share`, (): exactly 1 where all processes have as many.
        """
        column = self._all[:, self._names[name]]
        own = self._own[self._names[name]] * len(column)
        return own / column.sum().clamp(min=1)

    def told(self, name: str) -> Tensor:
        """Numbers of all processes, which nobody waits for yet.

        Args:
            name: Name of the items.

        Returns:
            The numbers in the order of the ranks, (processes,).
        """
        return self._all[:, self._names[name]]

    def of_each(self, name: str) -> list[int]:
        """Numbers of all processes.

        Args:
            name: Name of the items.

        Returns:
            The numbers in the order of the ranks.
        """
        numbers: list[int] = self.told(name).tolist()
        return numbers


def global_means(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Means over all processes of several numbers, in one message.

    Args:
        values: Numbers by name, () each, the same names on every process.

    Returns:
        Their means by name, (), without gradient.
    """
    dtype = next(iter(values.values())).dtype
    stacked = torch.stack([value.detach().to(dtype) for value in values.values()])
    return dict(zip(values, global_mean(stacked), strict=True))


@torch.no_grad()
def gather_batch(x: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Concatenate the batches of all processes, in the order of their ranks.

    Args:
        x: Local batch, (B, ...); B may differ, as in the last batch of an epoch.
        sizes: The B of each process. None: they are found out.

    Returns:
        Global batch, (sum of all B, ...), without gradient.
    """
    x = x.detach()
    if world_size() == 1:
        return x
    if sizes is None:
        length = torch.tensor(len(x), device=x.device)
        sizes = GlobalCounts({'batch': length}).of_each('batch')
    # all processes have to send as much
    padded = x.new_zeros(max(sizes), *x.shape[1:])
    padded[: len(x)] = x
    batches = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(batches, padded)
    return torch.cat([batch[:size] for batch, size in zip(batches, sizes, strict=True)])


class _AllReduce(torch.autograd.Function):
    """Sum over all processes, of values and of gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.clone()
        dist.all_reduce(total)
        return total


def global_sum(x: Tensor) -> Tensor:
    """Sum over all processes, through which gradients reach all of them.

    Args:
        x: Any shape, the same on every process.

    Returns:
        Sum, same shape.
    """
    if world_size() == 1:
        return x
    total: Tensor = _AllReduce.apply(x)
    return total
