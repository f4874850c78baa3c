# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Features and their labels, and the share of labels that is found."""

from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy


class Features(NamedTuple):
    """Features of images, or of cells, and their labels."""

    #: Features, (N, D).
    x: Tensor
    #: Their classes from 0, (N,).
    y: Tensor


def to_numpy(x: Tensor) -> NDArray[Any]:
    """Bring a tensor to where scikit-learn computes.

    Args:
        x: Any tensor, of half precision too.

    Returns:
        The same numbers, in single precision if they are no whole ones.
    """
    x = x.detach().cpu()
    array: NDArray[Any] = (x.float() if x.is_floating_point() else x).numpy()
    return array


class Standardisation:
    """Gives features the zero mean and unit variance that those of a memory then have.

    A feature that does not vary is left where it is, as in scikit-learn.
    """

    def __init__(self, memory: Tensor) -> None:
        """Initialize a new Standardisation instance.

        Args:
            memory: Features, (N, D).
        """
        x = memory.double()
        self.std, self.mean = torch.std_mean(x, dim=0, correction=0)
        # below what single precision tells apart
        varies = self.std > 1e-6 * x.abs().amax(dim=0)
        self.std = self.std.where(varies, torch.ones_like(self.std))

    def __call__(self, features: Tensor) -> Tensor:
        """Standardise features.

        Args:
            features: Features, (M, D).

        Returns:
            The same in single precision, standardised by the memory.
        """
        x = features.to(self.mean)
        return ((x - self.mean) / self.std).float()


def accuracies(predictions: Tensor | NDArray[Any], labels: Tensor) -> Tensor:
    """Overall and macro accuracy.

    Args:
        predictions: Classes from 0 that were found, (N,).
        labels: The true ones, (N,).

    Returns:
        Share of the items whose class was found, and its mean over the classes that
        there are, (2,).
    """
    found = torch.as_tensor(predictions, device=labels.device)
    num_classes = int(max(found.max(), labels.max())) + 1
    per_class = multiclass_accuracy(found, labels, num_classes, average=None)
    overall = multiclass_accuracy(found, labels, num_classes, average='micro')
    return torch.stack([overall, per_class[torch.unique(labels)].mean()]).cpu()
