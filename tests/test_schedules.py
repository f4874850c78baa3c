# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The schedules against the published implementation."""

import pytest
import torch

from tests.goldens import load_golden
from torchgeo_cmid import schedules


class TestSchedules:
    golden = load_golden('schedules')

    def test_teacher_temperature(self) -> None:
        reference = self.golden['teacher_temperature_400_epochs']
        values = [schedules.teacher_temperature(e, 50, 0.04, 0.07) for e in range(400)]
        torch.testing.assert_close(torch.tensor(values).double(), reference)

    def test_momentum(self) -> None:
        reference = self.golden['momentum_100_steps']
        values = [schedules.cosine(n, 100, 0.996, 1.0) for n in range(101)]
        torch.testing.assert_close(
            torch.tensor(values, dtype=torch.float64), reference, rtol=1e-12, atol=0
        )

    def test_learning_rate(self) -> None:
        reference = self.golden['lr_4000_steps_10_per_epoch']
        values = [
            schedules.learning_rate(n, 4000, 100, 1e-3, 1e-6) for n in range(4000)
        ]
        torch.testing.assert_close(
            torch.tensor(values, dtype=torch.float64), reference, rtol=1e-9, atol=0
        )

    def test_without_warmup(self) -> None:
        assert schedules.learning_rate(0, 10, 0, 1e-3, 1e-6) == pytest.approx(1e-3)
        assert schedules.teacher_temperature(0, 0, 0.04, 0.07) == 0.07

    @pytest.mark.parametrize('warmup_epochs', [0, 0.5, 1, 10])
    def test_peak_is_what_is_reached(self, warmup_epochs: float) -> None:
        settings = {'warmup_epochs': warmup_epochs, 'lr': 0.1, 'min_lr': 0.0}
        planned = schedules.Schedules(settings, total_steps=10, steps_per_epoch=8)
        rates = [planned.learning_rate(n) for n in range(10)]
        at, peak = planned.peak_learning_rate()
        assert peak == max(rates) == rates[at]
        assert peak == 0.1 if warmup_epochs == 0 else peak < 0.1
