# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Batch norm over all processes on CPUs, where torch's own refuses to work."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import global_sum, world_size


class GlobalBatchNorm(nn.Module):
    """Batch norm with the statistics of the global batch, on any device.

    The mean comes first and the variance around it second: two messages where torch's
    :class:`~torch.nn.SyncBatchNorm` for GPUs needs one. No subclass of batch norm, as
    that is what torch's conversion looks for.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    track_running_stats: bool
    eps: float
    momentum: float | None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel.

        As torch has it, statistics are never those of the global batch in eval mode:
        they are the running ones or, without any, those of the local batch.

        Args:
            x: Local batch, (B, C, ...).

        Returns:
            Normalised batch, same shape.

        Raises:
            ValueError: If there is but one value per channel, in training.
        """
        if not self.training:
            running = self.running_mean, self.running_var
            own = running == (None, None)
            return F.batch_norm(x, *running, self.weight, self.bias, own, 0.0, self.eps)
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
        if x.numel() == x.shape[1] and world_size() == 1:
            raise ValueError(
                f'a batch of shape {tuple(x.shape)} has one value per channel: batch '
                'norm needs more in training, so raise batch_size'
            )
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        number = values.new_tensor([values.numel() / values.shape[1]])
        total = global_sum(torch.cat([values.sum(dim=dims), number]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centered = values - mean.view(shape)
        variance = global_sum(centered.square().sum(dim=dims)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normalised = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, as batch norm does."""
        if not self.track_running_stats:
            return
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # the mean over all batches so far
                momentum = 1 / int(self.num_batches_tracked)
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            if running is not None:
                running.lerp_(value.to(running), momentum or 0.0)


def synchronise_batch_norms(model: nn.Module) -> None:
    """Give plain batch norms the statistics of the global batch, in place.

    Args:
        model: The model; its parameters, buffers and their names stay.
    """
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = GlobalBatchNorm
