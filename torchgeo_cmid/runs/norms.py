# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Batch norm over all processes on CPUs, where torch's own refuses to work."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import global_sum


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
    num_batches_tracked: Tensor
    eps: float
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel.

        Args:
            x: Local batch, (B, C, ...).

        Returns:
            Normalised batch, same shape.
        """
        if not self.training:
            statistics = self.running_mean, self.running_var
            affine = self.weight, self.bias
            return F.batch_norm(x, *statistics, *affine, eps=self.eps)
        dims = [dim for dim in range(x.ndim) if dim != 1]
        shape = [-1 if dim == 1 else 1 for dim in range(x.ndim)]
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        number = values.new_tensor([values.numel() / values.shape[1]])
        total = global_sum(torch.cat([values.sum(dim=dims), number]))
        count = total[-1].detach()
        mean = total[:-1] / count
        centered = values - mean.view(shape)
        variance = global_sum(centered.square().sum(dim=dims)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normalised = centered * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None and self.bias is not None:
            normalised = normalised * self.weight.view(shape) + self.bias.view(shape)
        return normalised.to(x.dtype)

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics, as batch norm does."""
        if self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var), self.momentum)


def synchronise_batch_norms(model: nn.Module) -> None:
    """Give plain batch norms the statistics of the global batch, in place.

    Args:
        model: The model; its parameters, buffers and their names stay.
    """
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = GlobalBatchNorm
