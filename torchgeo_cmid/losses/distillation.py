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

    The temperature T of the teacher is given; or it follows the spread s of the
    teacher's logits, the mean standard deviation of z_t - c over the prototypes, so
    that s / T, the sharpness, is constant, and with it the entropy of the assignments:
    s changes with the networks, and a fixed T is too warm for one and too cold for
    another.

    Attributes:
        center: The running mean c, (prototypes).
        spread: Running mean of s, (), 0 before the first call.
        in_use: Number of prototypes in use, the first ones.
        sharpness: s / T, or None for a temperature that is given.
    """

    center: Tensor
    spread: Tensor
    in_use: int
    sharpness: float | None

    #: Weight of a new value in the running mean of the spread.
    SPREAD_RATE = 1 / 20

    def __init__(
        self,
        num_prototypes: int = 2048,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        sharpness: float | None = None,
    ) -> None:
        """Initialize a new PrototypeDistillation instance.

        Args:
            num_prototypes: Number of prototypes.
            student_temperature: Temperature T_s of the student's softmax.
            center_momentum: Momentum of the running mean c.
            sharpness: s / T of the teacher. None: its temperature is given.
        """
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.sharpness = sharpness
        self.in_use = num_prototypes
        self.register_buffer('center', torch.zeros(num_prototypes))
        self.register_buffer('spread', torch.zeros(()))

    @torch.no_grad()
    def assign(
        self, teacher: Tensor, temperature: float | Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Assign the teacher's cells to prototypes.

        In train mode spread and centre move towards those of these cells, over all
        processes: the spread before, the centre after the assignment.

        Args:
            teacher: Prototype logits z_t, (N, prototypes).
            temperature: Temperature T of the teacher's softmax, where it is given.
            weight: Weight of this process's cells in the global mean, (): see
                :func:`~torchgeo_cmid.distributed.batch_share`.

        Returns:
            Probabilities, (N, prototypes in use).
        """
        logits = teacher[:, : self.in_use]
        center = self.center[: self.in_use]
        centred = logits - center
        spread = centred.std(dim=1).mean().to(self.spread)
        if not self.training:
            known = self.spread.where(self.spread > 0, spread)
            return F.softmax(centred / self.temperature(temperature, known), dim=1)
        mean = logits.mean(dim=0).to(center)
        if weight is not None:
            # the mean of the weights is 1, or 0 where there is no cell: nothing moves
            mean = torch.lerp(center, mean, weight.to(mean))
            spread = torch.lerp(self.spread, spread, weight.to(spread))
        message = global_mean(torch.cat((mean, spread[None].to(mean))))
        mean, spread = message[:-1], message[-1].to(self.spread)
        rate = torch.where(self.spread > 0, self.SPREAD_RATE, 1.0).to(spread)
        self.spread.lerp_(spread, rate)
        assignments = F.softmax(centred / self.temperature(temperature), dim=1)
        center.lerp_(mean, 1 - self.center_momentum)
        return assignments

    def temperature(
        self, given: float | Tensor, spread: Tensor | None = None
    ) -> float | Tensor:
        """Tell the temperature T of the teacher for a spread of its logits.

        Args:
            given: T, where there is no sharpness for it to follow from.
            spread: s, (). None: the running mean.

        Returns:
            *given*, or s / sharpness, ().
        """
        if self.sharpness is None:
            return given
        spread = self.spread if spread is None else spread
        return (spread / self.sharpness).clamp(min=1e-4)  # without a cell it is 0

    def forward(
        self, student: Tensor, assignments: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: Prototype logits z_s, (N, prototypes).
            assignments: The teacher's probabilities for the same cells,
                (N, prototypes in use), see :meth:`assign`.
            weight: Weight of this process's pairs in the global mean, (), where the
                processes do not have as many: see
                :func:`~torchgeo_cmid.distributed.batch_share`.

        Returns:
            The loss, ().
        """
        logits = student[:, : self.in_use] / self.student_temperature
        loss = F.cross_entropy(logits, assignments)
        return loss if weight is None else loss * weight.to(loss)
