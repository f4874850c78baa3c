# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""All that is measured on labelled images, from their features."""

import torch

from .features import Features, accuracies
from .knn import euclidean_knn, weighted_knn
from .linear import SHOTS, check_classes, few_shot, linear_probe


def evaluate_classification(
    memory: Features, queries: Features, held_out: Features | None = None
) -> dict[str, float]:
    """Find the classes of images from features alone, in five ways.

    Args:
        memory: Features with classes that are known, (N, D).
        queries: Features with classes that are to be found, (M, D).
        held_out: Features with classes on which C of the linear probe is chosen. None:
            folds of the memory.

    Returns:
        Overall accuracies: ``knn`` (weighted, cosine), ``knn5`` and
        ``knn5_standardised`` (Euclidean), ``linear``, and ``few_shot_1``,
        ``few_shot_5`` and ``few_shot_10`` as far as every class has as many images; and
        beside each its mean over classes, as ``knn_macro``, ...

    Raises:
        ValueError: If there is one class only, or if there are fewer images than
            neighbours.
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    check_classes(memory.y)
    predictions = {
        'knn': weighted_knn(memory, queries.x),
        'knn5': euclidean_knn(memory, queries.x),
        'knn5_standardised': euclidean_knn(memory, queries.x, standardised=True),
        'linear': linear_probe(memory, queries.x, held_out),
    }
    found = {name: accuracies(y, queries.y) for name, y in predictions.items()}
    fewest = int(torch.unique(memory.y, return_counts=True)[1].min())
    for shots in SHOTS:
        if shots <= fewest:
            found[f'few_shot_{shots}'] = few_shot(memory, queries, shots)
    return {
        name + kind: float(value)
        for name, both in found.items()
        for kind, value in zip(('', '_macro'), both, strict=True)
    }
