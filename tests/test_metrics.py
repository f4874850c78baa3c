# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Entropies and the effective rank."""

import pytest
import torch

from torchgeo_cmid.metrics import RankMe, entropy_share


class TestEntropyShare:
    def test_extremes(self) -> None:
        assert entropy_share(torch.full((5, 8), 1 / 8)) == pytest.approx(1)
        assert entropy_share(torch.eye(8)) == 0


class TestRankMe:
    @pytest.mark.parametrize('rank', [1, 2, 7])
    def test_equal_directions(self, rank: int) -> None:
        """With equal singular values the effective rank is the rank."""
        metric = RankMe()
        basis = torch.linalg.qr(torch.randn(16, rank)).Q  # (16, rank)
        for batch in (basis @ torch.linalg.qr(torch.randn(20, rank)).Q.T).T.split(6):
            metric.update(batch)
        assert metric.compute() == pytest.approx(rank, rel=1e-4)

    def test_zero_features(self) -> None:
        metric = RankMe()
        metric.update(torch.zeros(4, 8))
        assert torch.isfinite(metric.compute())
