# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Features and their labels, and the share of labels that is found."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from .extra import scikit_learn


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


def standardise(memory: Tensor) -> Callable[[Tensor], Tensor]:
    """Learn what gives the features of a memory zero mean and unit variance.

    Args:
        memory: Features, (N, D).

    Returns:
        What standardises other features, (M, D), by the memory: scikit-learn's, which
        leaves a feature that does not vary where it is.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    scaler = scikit_learn('preprocessing').StandardScaler().fit(to_numpy(memory))
    return lambda features: torch.from_numpy(scaler.transform(to_numpy(features)))


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
