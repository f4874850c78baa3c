# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Classes of images from those of their nearest neighbours."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .extra import scikit_learn
from .features import Features, standardise, to_numpy

#: Number of neighbours and temperature of the weighted k-NN.
MOST_NEIGHBOURS = 20
TEMPERATURE = 0.07

#: Number of neighbours of TorchGeo's benchmark.
NEIGHBOURS = 5


def euclidean_knn(
    memory: Features, queries: Tensor, k: int = NEIGHBOURS, standardised: bool = False
) -> Tensor:
    """Predict the class of most of the k nearest neighbours, by Euclidean distance.

    The protocol of TorchGeo's benchmarks of frozen features: 5 neighbours, raw and
    standardised features, the lowest class of those that are equally frequent. Source:
    `Revisiting pre-trained remote sensing model benchmarks
    <https://arxiv.org/abs/2305.13456>`__.

    Args:
        memory: Features with classes, (N, D).
        queries: Features of unknown class, (M, D).
        k: Number of neighbours.
        standardised: Whether features are standardised, by the memory.

    Returns:
        Classes, (M,).

    Raises:
        ValueError: If the memory has fewer than k images.
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    _check_neighbours(len(memory.x), k)
    x = memory.x
    if standardised:
        scale = standardise(x)
        x, queries = scale(x), scale(queries)
    neighbours = scikit_learn('neighbors').KNeighborsClassifier(k, algorithm='brute')
    neighbours.fit(to_numpy(x), to_numpy(memory.y))
    return torch.from_numpy(neighbours.predict(to_numpy(queries)))


def weighted_knn(
    memory: Features,
    queries: Tensor,
    k: int | None = None,
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> Tensor:
    """Predict the class with the most weight among the k nearest neighbours, by cosine.

    A neighbour of cosine c weighs exp(c / T). Source: section 3.4 of `Unsupervised
    feature learning via non-parametric instance discrimination
    <https://arxiv.org/abs/1805.01978>`__.

    Args:
        memory: Features with classes, (N, D).
        queries: Features of unknown class, (M, D).
        k: Number of neighbours. None: 20, or the mean number of images of a class in
            the memory if that is less.
        temperature: T.
        chunk: Number of queries that are compared at once.

    Returns:
        Classes, (M,).

    Raises:
        ValueError: If the memory has fewer than k images.
    """
    # it imports pytorch_lightning, which this package does without
    from lightly.utils.benchmarking.knn import knn_predict

    if k is None:
        k = max(1, min(MOST_NEIGHBOURS, len(memory.x) // len(torch.unique(memory.y))))
    _check_neighbours(len(memory.x), k)
    num_classes = int(memory.y.max()) + 1
    bank = F.normalize(memory.x.float(), dim=1).T
    y = memory.y.to(bank.device)
    found = [
        knn_predict(
            F.normalize(part.to(bank), dim=1), bank, y, num_classes, k, temperature
        )[:, 0]
        for part in torch.split(queries, chunk)
    ]
    return torch.cat(found)


def _check_neighbours(number: int, k: int) -> None:
    """Refuse a memory with too few images."""
    if number < k:
        raise ValueError(
            f'{number} labelled images are fewer than the k = {k} neighbours'
        )
