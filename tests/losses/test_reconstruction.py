# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Spatial and frequency loss against the published implementation."""

import pytest
import torch

from tests.goldens import assert_relative, load_golden
from torchgeo_cmid.losses import FrequencyLoss, SpatialLoss
from torchgeo_cmid.transforms import expand_mask


class TestReconstruction:
    def test_golden(self) -> None:
        golden = load_golden('reconstruction')
        prediction = golden['prediction'].requires_grad_()
        mask = expand_mask(golden['mask'].bool(), 64)
        spatial = SpatialLoss()(prediction, golden['target'], mask)
        frequency = FrequencyLoss()(prediction, golden['target'], mask)
        assert_relative(spatial, golden['spatial'], 1e-5)
        assert_relative(frequency, golden['frequency'], 1e-5)
        (spatial + frequency).backward()
        assert prediction.grad is not None
        assert_relative(prediction.grad, golden['grad_prediction'], 1e-4)

    def test_frequency_formula(self) -> None:
        """Term by term as in the paper, with a transform of every image."""
        torch.manual_seed(0)
        r, x = torch.randn(2, 3, 4, 16, 16, dtype=torch.float64)
        mask = (torch.rand(3, 1, 16, 16) < 0.6).double()
        soft = mask + 0.001 * (1 - mask)
        blended = r * soft + (0.5 * r + 0.5 * x) * (1 - soft)
        delta = torch.fft.fft2(blended, norm='ortho').mean(0)
        delta = delta - torch.fft.fft2(x, norm='ortho').mean(0)
        weight = torch.log(1 + delta.abs())
        weight = (weight / weight.max()).clamp(0, 1)
        expected = (weight * delta.abs() ** 2).mean()
        torch.testing.assert_close(FrequencyLoss()(r, x, mask), expected)

    def test_perfect_reconstruction(self) -> None:
        x = torch.rand(2, 3, 8, 8, requires_grad=True)
        mask = torch.ones(2, 1, 8, 8)
        loss = SpatialLoss()(x, x.detach(), mask) + FrequencyLoss()(x, x.detach(), mask)
        loss.backward()
        assert loss == 0
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()

    @pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        r, x = torch.randn(2, 2, 3, 16, 16).to(dtype)
        mask = torch.ones(2, 1, 16, 16, dtype=dtype)
        assert torch.isfinite(FrequencyLoss()(r, x, mask))
