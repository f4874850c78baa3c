# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The reconstruction losses of CMID: in space and in frequency."""

import torch
from torch import Tensor, nn

from ..distributed import batch_mean, batch_share, global_mean


class SpatialLoss(nn.Module):
    """Distance of the masked pixels, weighted by its own sigmoid.

    With d = |r - x| and the mask M, 1 where a pixel was masked:

        sum(d (2 sigmoid(0.2 d) - 1) M) / (sum(M) + 1e-5) / C

    The gradient flows through the sigmoid, too.

    Source: section III-B of `CMID <https://arxiv.org/abs/2304.09670>`__.
    """

    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        share: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            prediction: Reconstruction r, (B, C, S, S), normalised units.
            target: View x before masking, (B, C, S, S), normalised units.
            mask: M, (B, 1, S, S), 1 where masked.
            share: Weight of this process's masked pixels in the global mean, (), see
                :func:`~torchgeo_cmid.distributed.batch_share`. None: it is found out.

        Returns:
            The loss, ().
        """
        d = (prediction - target).abs()
        weighted = d * (2 * torch.sigmoid(0.2 * d) - 1) * mask
        channels = target.shape[1]
        loss: Tensor = weighted.sum() / (mask.sum() + 1e-5) / channels
        if share is None:  # processes differ where there is fill
            share = batch_share(mask.sum())
        return loss * share.to(loss)


class FrequencyLoss(nn.Module):
    """Focal distance between the mean spectra of reconstruction and view.

    Pixels that were not masked pull with a thousandth of their weight:

        M' = M + 0.001 (1 - M)
        r' = r M' + (0.5 sg(r) + 0.5 x)(1 - M')
        Delta = mean_B FFT2(r') - mean_B FFT2(x)
        w = sg(log(1 + |Delta|)) over its maximum, NaN -> 0, within [0, 1]
        loss = mean(w |Delta|^2)

    The mean is over the global batch and the transform is orthonormal. As a mean of
    transforms is the transform of a mean, one transform of (C, S, S) is enough.

    Source: section III-B of `CMID <https://arxiv.org/abs/2304.09670>`__, after the
    `focal frequency loss <https://arxiv.org/abs/2012.12821>`__.
    """

    def forward(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        share: Tensor | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            prediction: Reconstruction r, (B, C, S, S), normalised units.
            target: View x before masking, (B, C, S, S), normalised units.
            mask: M, (B, 1, S, S), 1 where masked.
            share: Weight of this process's batch in the global mean, (), see
                :func:`~torchgeo_cmid.distributed.batch_share`. None: it is found out.

        Returns:
            The loss, ().
        """
        soft_mask = mask + 0.001 * (1 - mask)
        # r' - x: the half of x in r' leaves half of it in the difference
        blend = 0.5 * (prediction.detach() - target)
        difference = torch.lerp(blend, prediction - target, soft_mask)
        dtype = torch.promote_types(difference.dtype, torch.float32)  # for the FFT
        mean = global_mean(batch_mean(difference.to(dtype), share))  # (C, S, S)
        delta = torch.fft.fft2(mean, norm='ortho')
        power = delta.real.square() + delta.imag.square()  # |Delta|^2
        with torch.no_grad():
            weight = torch.log1p(power.sqrt())
            weight = (weight / weight.max()).nan_to_num(0).clamp(0, 1)
        loss: Tensor = (weight * power).mean()
        return loss
