# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Linear probes, which have no learning rate to tune."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .extra import scikit_learn
from .features import Features, accuracies, standardise, to_numpy

#: Inverse strengths of the regularisation from which one is chosen; features are
#: standardised.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

FOLDS = 3
SHOTS = (1, 5, 10)
DRAWS = 5


def logistic_regression(c: float = 1.0) -> Any:
    """Multinomial logistic regression by L-BFGS.

    Args:
        c: C, the inverse of the regularisation's strength.

    Returns:
        scikit-learn's, not fitted.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    return scikit_learn('linear_model').LogisticRegression(
        C=c, solver='lbfgs', max_iter=1000, tol=1e-3
    )


def choose_strength(
    memory: Features,
    held_out: Features | None = None,
    groups: Tensor | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> float:
    """Choose the strength of the regularisation on data that is held out.

    Args:
        memory: Features with classes, (N, D), standardised.
        held_out: Others, (M, D). None: folds of the memory, in turn.
        groups: Numbers of the images to which cells belong, (N,): those of an image
            stay in one fold. None: each item is an image.
        strengths: The C to choose from.

    Returns:
        The C of the highest overall accuracy, the least of several.

    Raises:
        ValueError: If there are too few images for folds.
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    selection = scikit_learn('model_selection')
    x, y = to_numpy(memory.x), to_numpy(memory.y)
    owner = None if groups is None else to_numpy(groups)
    if held_out is not None:
        part = np.repeat([-1, 0], [len(x), len(held_out.x)])
        x = np.concatenate([x, to_numpy(held_out.x)])
        y = np.concatenate([y, to_numpy(held_out.y)])
        folds, owner = selection.PredefinedSplit(part), None
    elif owner is not None:
        folds = selection.GroupKFold(_number_of_folds(len(np.unique(owner))))
    else:
        number = _number_of_folds(int(np.unique(y, return_counts=True)[1].max()))
        folds = selection.StratifiedKFold(number, shuffle=True, random_state=0)
    search = selection.GridSearchCV(
        logistic_regression(), {'C': list(strengths)}, cv=folds, refit=False
    )
    search.fit(x, y, groups=owner)
    return float(search.best_params_['C'])


def _number_of_folds(items: int) -> int:
    """Three, or two where there are no more images."""
    if items < 2:
        raise ValueError(
            'C of the linear probe is chosen on folds of the labelled images, which '
            'needs two images of a class'
        )
    return min(FOLDS, items)


def linear_probe(
    memory: Features, queries: Tensor, held_out: Features | None = None
) -> Tensor:
    """Predict classes by logistic regression on standardised features.

    Args:
        memory: Features with classes, (N, D).
        queries: Features of unknown class, (M, D).
        held_out: Features with classes on which C is chosen. None: folds of the memory.

    Returns:
        Classes, (M,).

    Raises:
        ValueError: If the memory has one class only, or too few images for folds.
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    check_classes(memory.y)
    scale = standardise(memory.x)
    known = Features(scale(memory.x), memory.y)
    if held_out is not None:
        held_out = Features(scale(held_out.x), held_out.y)
    regression = logistic_regression(choose_strength(known, held_out))
    regression.fit(to_numpy(known.x), to_numpy(known.y))
    return torch.from_numpy(regression.predict(to_numpy(scale(queries))))


def few_shot(
    memory: Features, queries: Features, shots: int, draws: int = DRAWS, seed: int = 0
) -> Tensor:
    """Accuracies of a linear probe that knows a few labels of each class.

    Labels are few, images are not: features are standardised by the whole memory. C is
    1, as there are no labels to choose it on.

    Args:
        memory: Features with classes, (N, D).
        queries: Features with classes that are to be found, (M, D).
        shots: Number of labels per class.
        draws: Number of draws of the labels.
        seed: What the draws follow from.

    Returns:
        Overall and macro accuracy, (2,), mean over the draws.

    Raises:
        ValueError: If a class has fewer images, or if there is one class only.
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    check_classes(memory.y)
    scale = standardise(memory.x)
    x, y = to_numpy(scale(memory.x)), to_numpy(memory.y)
    unknown = to_numpy(scale(queries.x))
    classes, counts = np.unique(y, return_counts=True)
    if counts.min() < shots:
        raise ValueError(
            f'{shots} labels per class, but class {classes[counts.argmin()]} has '
            f'{counts.min()} labelled images'
        )
    random = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = np.concatenate(
            [random.permutation(np.flatnonzero(y == each))[:shots] for each in classes]
        )
        regression = logistic_regression().fit(x[chosen], y[chosen])
        found.append(accuracies(regression.predict(unknown), queries.y))
    return torch.stack(found).mean(dim=0)


def check_classes(labels: Tensor) -> None:
    """Refuse labels among which nothing can be told apart.

    Args:
        labels: Classes, (N,).

    Raises:
        ValueError: If there is one class only.
    """
    classes = torch.unique(labels)
    if len(classes) < 2:
        raise ValueError(
            f'the labelled images are all of class {classes.tolist()}: nothing can be '
            'told apart, two classes are needed'
        )
