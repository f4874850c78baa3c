# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Whether the features still carry information: entropies and the effective rank."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


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
    """

    higher_is_better = True
    full_state_update = False
    embeddings: list[Tensor]

    def __init__(self) -> None:
        """Initialize a new RankMe instance."""
        super().__init__()
        self.add_state('embeddings', default=[], dist_reduce_fx='cat')

    def update(self, embeddings: Tensor) -> None:
        """Collect embeddings.

        Args:
            embeddings: Pooled features, (B, D).
        """
        self.embeddings.append(embeddings.detach().float())

    def compute(self) -> Tensor:
        """Compute the effective rank of all embeddings.

        Returns:
            The effective rank, (), between 1 and min(N, D).
        """
        singular_values = torch.linalg.svdvals(dim_zero_cat(self.embeddings))
        total = singular_values.sum().clamp(min=torch.finfo(torch.float32).tiny)
        rank: Tensor = torch.special.entr(singular_values / total).sum().exp()
        return rank
