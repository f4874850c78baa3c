# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Accuracies and standardisation."""

import pytest
import torch
from sklearn.metrics import recall_score

from torchgeo_cmid.evaluation import accuracies
from torchgeo_cmid.evaluation.features import standardise, to_numpy


class TestAccuracies:
    def test_known(self) -> None:
        """Three of four; of class 0 all three, of class 1 none."""
        found = accuracies(torch.zeros(4).long(), torch.tensor([0, 0, 0, 1]))
        assert found.tolist() == pytest.approx([0.75, 0.5])

    def test_macro_over_classes_that_are_there(self) -> None:
        """A class that was found but is not there is no class of the mean."""
        found, y = torch.tensor([0, 2, 5, 2]), torch.tensor([0, 0, 2, 2])
        assert recall_score(y, found, labels=[0, 2], average='macro') == 0.5
        assert accuracies(found, y)[1] == pytest.approx(0.5)


def test_standardise_by_the_memory() -> None:
    """Queries get what gives the memory zero mean and unit variance."""
    torch.manual_seed(0)
    memory = 3 * torch.randn(50, 4) + torch.tensor([0, 100.0, -5, 0])
    memory[:, 3] = 0.1  # does not vary: it is moved, not scaled
    queries = torch.randn(7, 4)
    mean, std = memory.mean(dim=0), memory.std(dim=0, correction=0)
    std[3] = 1
    scaled = standardise(memory)(queries)
    torch.testing.assert_close(scaled, (queries - mean) / std, rtol=1e-4, atol=1e-5)


def test_to_numpy() -> None:
    assert to_numpy(torch.ones(2).bfloat16()).dtype == 'float32'
    assert to_numpy(torch.ones(2).long()).dtype == 'int64'
