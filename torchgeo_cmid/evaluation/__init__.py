# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What frozen features are worth: pure functions of features and labels."""

from .baselines import cell_statistics, image_statistics
from .classification import evaluate_classification
from .dense import (
    CellKNN,
    CellProbe,
    Cells,
    find_masks,
    mean_iou,
    pair_dates,
    soft_labels,
    transfer_labels,
)
from .features import Features, accuracies
from .knn import euclidean_knn, weighted_knn
from .label_free import (
    cell_rank,
    correspondence,
    correspondence_accuracy,
    effective_rank,
    mean_cosine,
    normalised_std,
    same_ground,
)
from .linear import few_shot, linear_probe

__all__ = (
    'CellKNN',
    'CellProbe',
    'Cells',
    'Features',
    'accuracies',
    'cell_rank',
    'cell_statistics',
    'correspondence',
    'correspondence_accuracy',
    'effective_rank',
    'euclidean_knn',
    'evaluate_classification',
    'few_shot',
    'find_masks',
    'image_statistics',
    'linear_probe',
    'mean_cosine',
    'mean_iou',
    'normalised_std',
    'pair_dates',
    'same_ground',
    'soft_labels',
    'transfer_labels',
    'weighted_knn',
)
