# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Prototype distillation against the published implementation."""

import torch

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
