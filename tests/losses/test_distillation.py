# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Prototype distillation against the published implementation, and by sharpness."""

import pytest
import torch
from torch import Tensor

from tests.goldens import assert_relative, load_golden
from torchgeo_cmid.losses import PrototypeDistillation


class TestPrototypeDistillation:
    def test_golden(self) -> None:
        golden = load_golden('distillation')
        criterion = PrototypeDistillation(
            32, float(golden['student_temperature']), float(golden['center_momentum'])
        )
        criterion.center.copy_(golden['center_before'].flatten())
        student = golden['student'].requires_grad_()
        # (B, prototypes, cells) -> (B cells, prototypes)
        teacher = golden['teacher'].mT.flatten(0, 1)
        criterion.eval()
        assignments = criterion.assign(teacher, float(golden['teacher_temperature']))
        loss = criterion(student.mT.flatten(0, 1), assignments)
        assert_relative(loss, golden['loss'], 1e-5)
        loss.backward()
        assert student.grad is not None
        assert_relative(student.grad, golden['grad_student'], 1e-4)
        torch.testing.assert_close(criterion.center, golden['center_before'].flatten())
        criterion.train()
        again = criterion.assign(teacher, float(golden['teacher_temperature']))
        assert torch.equal(again, assignments)  # with the centre of before
        assert_relative(criterion.center, golden['center_after'].flatten(), 1e-5)

    def test_no_cell_at_all(self) -> None:
        """No pair on any process: no loss, and the centre stays."""
        criterion = PrototypeDistillation(8)
        criterion.center.copy_(torch.rand(8))
        before = criterion.center.clone()
        student, teacher = torch.rand(2, 3, 8)
        nothing = torch.zeros(())
        assignments = criterion.assign(teacher, 0.04, nothing)
        assert criterion(student, assignments, nothing) == 0
        assert torch.equal(criterion.center, before)


class TestSharpness:
    """The teacher's temperature follows the spread of its logits."""

    def make(self, sharpness: float | None = 2.0) -> PrototypeDistillation:
        return PrototypeDistillation(4, center_momentum=1.0, sharpness=sharpness)

    def logits(self, spread: float) -> Tensor:
        """Logits whose standard deviation over the four prototypes is *spread*."""
        return torch.tensor([[-1.0, -1, 1, 1]] * 3) * spread * 0.75**0.5

    def test_running_mean(self) -> None:
        criterion = self.make()
        expected = 0.0
        for spread in (0.4, 0.8, 0.1):
            criterion.assign(self.logits(spread), 0.04)
            expected += (spread - expected) * (1 / 20 if expected else 1)
            assert float(criterion.spread) == pytest.approx(expected)

    @pytest.mark.parametrize('spread', [1e-3, 0.05, 3.0])
    def test_assignments_do_not_depend_on_the_scale(self, spread: float) -> None:
        criterion = self.make()
        found = criterion.assign(self.logits(spread), 0.04)
        assert float(criterion.temperature(0.04)) == pytest.approx(spread / 2)
        expected = (2 * self.logits(1.0)).softmax(dim=1)
        torch.testing.assert_close(found, expected)

    def test_a_temperature_that_is_given(self) -> None:
        criterion = self.make(None)
        found = criterion.assign(self.logits(0.1), 0.04)
        torch.testing.assert_close(found, (self.logits(0.1) / 0.04).softmax(dim=1))
        assert criterion.temperature(0.04) == 0.04
        assert float(criterion.spread) == pytest.approx(0.1)  # it is known all the same

    def test_nothing_moves_in_eval_mode_or_without_a_cell(self) -> None:
        criterion = self.make()
        criterion.assign(self.logits(0.4), 0.04)
        criterion.assign(self.logits(9.0), 0.04, torch.zeros(()))
        criterion.eval()
        criterion.assign(self.logits(9.0), 0.04)
        assert float(criterion.spread) == pytest.approx(0.4)

    def test_prototypes_in_use(self) -> None:
        criterion = PrototypeDistillation(8)
        criterion.in_use = 4
        teacher, student = torch.randn(2, 5, 8)
        found = criterion.assign(teacher, 0.5)
        torch.testing.assert_close(found, (teacher[:, :4] / 0.5).softmax(dim=1))
        changed = torch.cat([student[:, :4], 100 * student[:, 4:]], dim=1)
        assert criterion(student, found) == criterion(changed, found)
        assert criterion.center[:4].any()
        assert not criterion.center[4:].any()
