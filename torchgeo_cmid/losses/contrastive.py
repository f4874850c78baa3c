# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The global losses of CMID: InfoNCE against a queue, and BYOL without one."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..distributed import batch_mean, gather_batch


class _QueueLogSumExp(torch.autograd.Function):
    """lse_i = log sum_k exp(q_i . queue_k / T), with its gradient made on the spot.

    Autograd would keep the queue, 64 MiB by default, and all logits for the backward
    pass. The gradient, softmax @ queue^T / T, is as small as the queries, and once it
    is there the queue may change.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, queue: Tensor, temperature: float) -> Tensor:
        logits = (query @ queue).div_(temperature)  # (B, K)
        lse = logits.logsumexp(dim=1)
        if ctx.needs_input_grad[0]:
            assignments = logits.sub_(lse[:, None]).exp_()
            ctx.save_for_backward(assignments @ queue.T / temperature)  # (B, dim)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad[:, None] * gradient, None, None


class QueueInfoNCE(nn.Module):
    """Plain InfoNCE of queries and keys against a queue of earlier keys.

    Cross-entropy of (q k+, q k-) / T, k- being the columns of the queue as they are;
    no factor 2T. With lse, the log-sum-exp of q k- / T over the queue, that is

        softplus(lse - q k+ / T)

    Source: `MoCo <https://arxiv.org/abs/1911.05722>`__, section 3.2, as used in
    section III-C of `CMID <https://arxiv.org/abs/2304.09670>`__.
    """

    queue: Tensor
    queue_ptr: Tensor

    #: Number of keys in use, the first columns of the queue.
    in_use: int

    def __init__(
        self, dim: int = 256, queue_size: int = 65536, temperature: float = 0.2
    ) -> None:
        """Initialize a new QueueInfoNCE instance.

        Args:
            dim: Length of queries and keys.
            queue_size: Number K of keys in the queue.
            temperature: Temperature T of the softmax.
        """
        super().__init__()
        self.temperature = temperature
        self.in_use = queue_size
        self.register_buffer('queue', F.normalize(torch.randn(dim, queue_size), dim=0))
        self.register_buffer('queue_ptr', torch.zeros(1, dtype=torch.long))

    def use(self, number: int) -> None:
        """Use the first columns of the queue alone.

        Args:
            number: How many.

        Raises:
            ValueError: If the queue has fewer.
        """
        if number > self.queue.shape[1]:
            raise ValueError(
                f'queue_size={number} is more than the {self.queue.shape[1]} keys that '
                'the queue holds'
            )
        self.in_use = number
        self.queue_ptr.remainder_(number)

    def forward(
        self, query: Tensor, key: Tensor, share: Tensor | None = None
    ) -> Tensor:
        """Compute the loss; the queue is left as it is.

        Args:
            query: L2-normalised embeddings of the student, (B, dim).
            key: L2-normalised embeddings of the teacher, (B, dim), in the same order.
            share: Weight of this process's batch in the global mean, (), see
                :func:`~torchgeo_cmid.distributed.batch_share`. None: it is found out.

        Returns:
            The loss, ().
        """
        with torch.autocast(query.device.type, enabled=False):
            query, key = query.to(self.queue.dtype), key.to(self.queue.dtype)
            positive = (query * key).sum(dim=1) / self.temperature  # (B,)
            negative = _QueueLogSumExp.apply(
                query, self.queue[:, : self.in_use], self.temperature
            )
            return batch_mean(F.softplus(negative - positive), share)

    @torch.no_grad()
    def enqueue(self, *keys: Tensor, sizes: Sequence[int] | None = None) -> None:
        """Replace the oldest keys of the queue by those of the global batch.

        Every key enters once, at the pointer, wrapping round at the end of the queue;
        of more keys than the queue holds the last ones stay.

        Args:
            *keys: L2-normalised embeddings of the teacher, (B, dim) each, which enter
                one after the other.
            sizes: The B of each process. None: they are found out.
        """
        # of all processes' first keys, then of all their second ones
        new = (
            gather_batch(torch.stack(keys, dim=1), sizes).transpose(0, 1).flatten(0, 1)
        )
        size = self.in_use
        places = (self.queue_ptr + torch.arange(len(new), device=new.device)) % size
        # in place: the gradient of this step's loss does not need the old keys
        self.queue.index_copy_(1, places[-size:], new[-size:].T.to(self.queue.dtype))
        self.queue_ptr.add_(len(new)).remainder_(size)


class BYOLLoss(nn.Module):
    """Twice the cosine distance between prediction and key, 2 - 2 cos.

    Source: `BYOL <https://arxiv.org/abs/2006.07733>`__, equation 2.
    """

    def forward(
        self, prediction: Tensor, key: Tensor, share: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            prediction: L2-normalised predictions of the student, (B, dim).
            key: L2-normalised embeddings of the teacher, (B, dim).
            share: As of :class:`QueueInfoNCE`.

        Returns:
            The loss, ().
        """
        return batch_mean(2 - 2 * (prediction * key).sum(dim=1), share)
