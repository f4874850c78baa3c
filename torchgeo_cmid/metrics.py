# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Whether the features still carry information: entropies and the effective rank."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


def entropy_share(probabilities: Tensor) -> Tensor:
    """Mean entropy of distributions as a share of its maximum.

    Args:
        probabilities: Distributions over K outcomes, (..., K).

    Returns:
        Mean entropy / ln K, (): 1 if all are uniform, 0 if each has one outcome.
    """
    entropy = torch.special.entr(probabilities).sum(dim=-1)
    share: Tensor = entropy.mean() / math.log(probabilities.shape[-1])
    return share


class RankMe(Metric):
    """Effective rank of embeddings: the exponential of their spectrum's entropy.

    Source: `RankMe <https://arxiv.org/abs/2210.02885>`__, equation 3.

    The singular values of all embeddings X, (N, D), are the square roots of the
    eigenvalues of X^T X, which is a sum over batches: 32 MiB for D = 2048, whatever N
    is. In double precision the rank is that of X to 1e-5, as near as singular values in
    single precision.
    """

    higher_is_better = True
    full_state_update = False
    products: Tensor
    number: Tensor

    def __init__(self, sync_on_compute: bool = True) -> None:
        """Initialize a new RankMe instance.

        Args:
            sync_on_compute: Whether the embeddings of all processes count; all must
                then compute.
        """
        super().__init__(sync_on_compute=sync_on_compute)
        # X^T X, (D, D), once there are embeddings
        self.add_state('products', default=torch.zeros(()), dist_reduce_fx='sum')
        self.add_state('number', default=torch.zeros(()).long(), dist_reduce_fx='sum')

    def update(self, embeddings: Tensor) -> None:
        """Add embeddings.

        Args:
            embeddings: Pooled features, (B, D).
        """
        x = embeddings.detach()
        if x.device.type == 'mps':  # which has no double precision
            x = x.cpu()
        x = x.double()
        products = x.T @ x
        self.products = self.products + products if self.products.ndim else products
        self.number += len(x)

    def compute(self) -> Tensor:
        """Compute the effective rank of all embeddings.

        Returns:
            The effective rank, (), between 1 and min(N, D).

        Raises:
            ValueError: If there are no embeddings.
        """
        if not self.products.ndim:
            raise ValueError('RankMe has no embeddings: call update(embeddings) first')
        eigenvalues = torch.linalg.eigvalsh(self.products)  # ascending
        # the others, and what is below zero, are zeros that were rounded
        eigenvalues = eigenvalues[-min(int(self.number), len(eigenvalues)) :]
        singular_values = eigenvalues.clamp(min=0).sqrt()
        total = singular_values.sum().clamp(min=torch.finfo(torch.float64).tiny)
        rank: Tensor = torch.special.entr(singular_values / total).sum().exp()
        return rank.float()
