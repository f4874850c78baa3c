# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""k-NN on embeddings whose neighbours are known."""

import math

import pytest
import torch

from torchgeo_cmid.evaluation import Features, euclidean_knn, weighted_knn
from torchgeo_cmid.evaluation.knn import TEMPERATURE


def at_cosine(*cosines: float) -> torch.Tensor:
    """Unit vectors with given cosines to the first axis, (N, 2)."""
    return torch.tensor([[c, math.sqrt(1 - c * c)] for c in cosines])


class TestWeightedKNN:
    @pytest.mark.parametrize(('excess', 'expected'), [(-0.002, 0), (0.002, 1)])
    def test_weights(self, excess: float, expected: int) -> None:
        """Two neighbours outweigh one of cosine 1 from 1 - T ln 2 on."""
        c = 1 - TEMPERATURE * math.log(2) + excess
        memory = Features(at_cosine(1, c, c), torch.tensor([0, 1, 1]))
        assert weighted_knn(memory, at_cosine(1), k=3).tolist() == [expected]

    def test_length_does_not_count(self) -> None:
        memory = Features(100 * torch.eye(3), torch.tensor([2, 0, 1]))
        assert weighted_knn(memory, 0.01 * torch.eye(3)).tolist() == [2, 0, 1]

    @pytest.mark.parametrize(
        ('per_class', 'near', 'expected'),
        [(3, 2, 1), (3, 1, 0), (30, 10, 1), (30, 9, 0)],
    )
    def test_number_of_neighbours(
        self, per_class: int, near: int, expected: int
    ) -> None:
        """Of k = min(20, images per class) neighbours *near* are of class 1."""
        cosines = [0.9999] * per_class + [1.0] * near + [-1.0] * (per_class - near)
        y = torch.tensor([0, 1]).repeat_interleave(per_class)
        memory = Features(at_cosine(*cosines), y)
        assert weighted_knn(memory, at_cosine(1)).tolist() == [expected]

    def test_chunks(self) -> None:
        torch.manual_seed(0)
        memory = Features(torch.randn(60, 8), torch.arange(60) % 3)
        queries = torch.randn(50, 8)
        together = weighted_knn(memory, queries)
        assert weighted_knn(memory, queries, chunk=7).equal(together)

    def test_half_precision(self) -> None:
        memory = Features(torch.eye(3).bfloat16(), torch.arange(3))
        assert weighted_knn(memory, torch.eye(3).bfloat16()).tolist() == [0, 1, 2]

    def test_too_few(self) -> None:
        memory = Features(torch.eye(3), torch.arange(3))
        with pytest.raises(ValueError, match=r'3 labelled images are fewer than .* 4'):
            weighted_knn(memory, torch.eye(3), k=4)


class TestEuclideanKNN:
    def test_majority(self) -> None:
        x = torch.tensor([[0.0], [1.0], [1.1], [1.2], [-1.0], [9.0]])
        memory = Features(x, torch.tensor([0, 1, 1, 1, 0, 0]))
        queries = torch.tensor([[0.0], [8.0]])
        assert euclidean_knn(memory, queries, k=1).tolist() == [0, 0]
        assert euclidean_knn(memory, queries).tolist() == [1, 1]

    def test_equally_frequent(self) -> None:
        """The lowest class, as scikit-learn has it."""
        memory = Features(torch.tensor([[0.0], [1.0]]), torch.tensor([5, 3]))
        assert euclidean_knn(memory, torch.tensor([[0.0]]), k=2).tolist() == [3]

    def test_standardised(self) -> None:
        """A feature of large numbers hides one that tells, unless standardised."""
        y = torch.arange(10) % 2
        large = 1000.0 * torch.arange(10)
        memory = Features(torch.stack([large, y.float()], dim=1), y)
        queries = torch.stack([large, 1.0 - y], dim=1)  # those beside are like them
        assert euclidean_knn(memory, queries, k=1).equal(y)
        found = euclidean_knn(memory, queries, k=1, standardised=True)
        assert found.equal(1 - y)

    def test_too_few(self) -> None:
        memory = Features(torch.eye(4), torch.arange(4))
        with pytest.raises(ValueError, match=r'4 labelled images are fewer than .* 5'):
            euclidean_knn(memory, torch.eye(4))
