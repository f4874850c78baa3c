# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The local loss of CMID: self-distillation of cells over prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import global_mean


class PrototypeDistillation(nn.Module):
    """Cross-entropy between the teacher's and the student's prototype assignments.

    With the prototype logits z_s and z_t of two cells that show the same ground and
    the centre c, a running mean of z_t:

        H = -sum_k softmax((z_t - c) / T)_k log softmax(z_s / T_s)_k

    averaged over pairs and batch.

    Source: section III-D of `CMID <https://arxiv.org/abs/2304.09670>`__, after
    `DINO <https://arxiv.org/abs/2104.14294>`__.
    """

    center: Tensor

    def __init__(
        self,
        num_prototypes: int = 2048,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        """Initialize a new PrototypeDistillation instance.

        Args:
            num_prototypes: Number of prototypes.
            student_temperature: Temperature T_s of the student's softmax.
            center_momentum: Momentum of the running mean c.
        """
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.register_buffer('center', torch.zeros(num_prototypes))

    def assign(self, teacher: Tensor, temperature: float) -> Tensor:
        """Assign the teacher's cells to prototypes.

        Args:
            teacher: Prototype logits z_t, (N, prototypes).
            temperature: Temperature T of the teacher's softmax.

        Returns:
            Probabilities, (N, prototypes).
        """
        return F.softmax((teacher - self.center) / temperature, dim=-1)

    def forward(
        self, student: Tensor, assignments: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: Prototype logits z_s, (N, prototypes).
            assignments: The teacher's probabilities for the same cells,
                (N, prototypes), see :meth:`assign`.
            weight: Weight of this process's pairs in the global mean, (), where the
                processes do not have as many: see
                :func:`~torchgeo_cmid.distributed.batch_share`.

        Returns:
            The loss, ().
        """
        loss = F.cross_entropy(student / self.student_temperature, assignments)
        return loss if weight is None else loss * weight.to(loss)

    @torch.no_grad()
    def update_center(self, teacher: Tensor, weight: Tensor | None = None) -> None:
        """Move the centre towards the mean of the teacher's logits, over all processes.

        Args:
            teacher: Prototype logits z_t, (N, prototypes).
            weight: Weight of this process's cells in the global mean, ().
        """
        mean = teacher.mean(dim=0).to(self.center)
        if weight is not None:
            # the mean of the weights is 1, or 0 where there is no cell: then c stays
            mean = torch.lerp(self.center, mean, weight.to(mean))
        self.center.lerp_(global_mean(mean), 1 - self.center_momentum)
