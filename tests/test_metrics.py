# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Entropies and the effective rank; two processes: test_distributed."""

import pytest
import torch
from lightning.pytorch.plugins import HalfPrecision
from torch import Tensor

from torchgeo_cmid.metrics import RankMe, entropy_share


class TestEntropyShare:
    def test_extremes(self) -> None:
        assert entropy_share(torch.full((5, 8), 1 / 8)) == pytest.approx(1)
        assert entropy_share(torch.eye(8)) == 0


def reference(embeddings: Tensor) -> float:
    """Equation 3 from the singular values of all embeddings."""
    singular_values = torch.linalg.svdvals(embeddings.double())
    shares = singular_values / singular_values.sum()
    return float(torch.special.entr(shares).sum().exp())


def draw(number: int, features: int, decay: float, offset: float) -> Tensor:
    """Embeddings whose spectrum decays, around a mean, (N, D)."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.exp(-decay * torch.arange(features))
    basis = torch.linalg.qr(torch.randn(features, features, generator=generator)).Q
    return torch.randn(number, features, generator=generator) * scale @ basis + offset


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

    def test_empty(self) -> None:
        with pytest.raises(ValueError, match='no embeddings'):
            RankMe().compute()

    @pytest.mark.parametrize('offset', [0.0, 1.0])
    @pytest.mark.parametrize('decay', [0.0, 0.02, 0.3, 3.0])
    @pytest.mark.parametrize(
        ('number', 'features'), [(1, 64), (5, 64), (20, 256), (64, 64), (700, 256)]
    )
    def test_as_singular_values(
        self, number: int, features: int, decay: float, offset: float
    ) -> None:
        """Also for fewer embeddings than features, collapsed or around a mean."""
        embeddings = draw(number, features, decay, offset)
        metric = RankMe()
        for batch in embeddings.split(48):
            metric.update(batch)
        assert metric.compute() == pytest.approx(reference(embeddings), rel=1e-5)

    def test_state_does_not_grow(self) -> None:
        """Regression: all embeddings were kept."""
        metric = RankMe()
        for _ in range(3):
            metric.update(torch.randn(100, 8))
            states = [getattr(metric, name) for name in metric._defaults]
            assert sum(state.numel() for state in states) == 8 * 8 + 1

    def test_half_precision(self) -> None:
        """With `bf16-true` only the embeddings are rounded; also after a reset."""
        embeddings = draw(100, 32, 0.1, 0.5).bfloat16()
        metric: RankMe = HalfPrecision('bf16-true').convert_module(RankMe())  # type: ignore[assignment]
        for _ in range(2):
            with torch.autocast('cpu', torch.bfloat16):
                for batch in embeddings.split(48):
                    metric.update(batch)
            expected = reference(embeddings)
            assert metric.compute() == pytest.approx(expected, rel=1e-5)
            metric.reset()
