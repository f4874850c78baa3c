# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

r"""A backbone of CMID in torchgeo-bench, TorchGeo's harness for frozen backbones.

    pip install torchgeo-bench
    PYTHONPATH=experiments/torchgeo_bench torchgeo-bench run \
        --config-dir experiments/torchgeo_bench/conf model=cmid \
        model.weights=run.ckpt dataset.names=[m-eurosat] output=cmid.csv

``model.weights`` is a checkpoint, an exported file, a name of published weights, or
null: random weights of ``model.backbone``.
"""

from typing import NamedTuple

import timm
import torch
from torch import Tensor
from torchgeo_bench.datasets.base import BandSpec
from torchgeo_bench.models._input_units import InputUnit, detect_input_unit
from torchgeo_bench.models.interface import BenchModel

from torchgeo_cmid.models.loading import get_state_dict, load_strictly
from torchgeo_cmid.models.normalization import from_standardised
from torchgeo_cmid.models.transfer import MODELS

#: The number that stands for 1 in the images of each of torchgeo-bench's units.
UNITS = {InputUnit.S2_DN: 1e4, InputUnit.REFLECTANCE_0_1: 1.0, InputUnit.UINT8: 255.0}


class Applied(NamedTuple):
    """What torchgeo-bench has done to its images: (raw - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    unit: float | None
    source: str = 'torchgeo-bench'
    bands: tuple[int | str, ...] | None = None


class CMIDBench(BenchModel):  # type: ignore[misc]
    """A frozen backbone whose images become the pixels that it was trained on.

    Where the unit of a data set is the backbone's, what torchgeo-bench has done is
    undone and the backbone's own mean and std take its place; elsewhere its z-scores
    stay, see :func:`~torchgeo_cmid.models.normalization.from_standardised`.
    """

    def __init__(
        self,
        bands: list[BandSpec],
        *,
        backbone: str | None = None,
        weights: str | None = None,
        normalization: str = 'bandspec_zscore',
        name: str | None = None,
        seed: int | None = None,
        eval: object = None,
    ) -> None:
        """Initialize a new CMIDBench instance.

        Args:
            bands: Bands of the data set, from torchgeo-bench.
            backbone: Name of a timm model. None: the one that the weights tell.
            weights: A checkpoint, an exported file, or a name of published weights.
                None: random weights.
            normalization: What torchgeo-bench does to the images first.
            name: Name of the row, used by torchgeo-bench.
            seed: Used by torchgeo-bench.
            eval: Used by torchgeo-bench.

        Raises:
            ValueError: If *normalization* is another than 'bandspec_zscore', if no
                backbone is known, or if the weights do not fit.
        """
        if normalization != 'bandspec_zscore':
            raise ValueError(
                f'dataset.normalization={normalization}: pass bandspec_zscore, the '
                'backbone brings its images to the pixels of its training from there'
            )
        super().__init__(bands, normalization)
        channels = len(bands)
        state = None if weights is None else get_state_dict(weights)
        if backbone is None:
            backbone = getattr(state, 'model', None)
        if backbone is None:
            raise ValueError(
                f'model.weights={weights} does not tell its model: pass '
                'model.backbone=resnet18 or another name of timm'
            )
        # ours would normalise a second time
        own = {'normalize': False} if backbone in MODELS else {}
        self.backbone = timm.create_model(
            backbone, in_chans=channels, num_classes=0, **own
        )
        scale, offset = torch.ones(channels), torch.zeros(channels)
        if state is not None:
            load_strictly(self.backbone, state, str(weights))
            if state.pixels is not None:
                applied = Applied(
                    tuple(band.mean for band in bands),
                    tuple(band.std for band in bands),
                    UNITS[detect_input_unit(bands)],
                )
                transform = from_standardised(state.pixels, channels, applied)
                print(f'pixels: {transform.reason}')
                scale = torch.tensor(transform.scale)
                offset = torch.tensor(transform.offset)
        self.register_buffer('scale', scale.view(-1, 1, 1))
        self.register_buffer('offset', offset.view(-1, 1, 1))

    def normalize_inputs(self, images: Tensor) -> Tensor:
        """Bring images to the pixels of the backbone.

        Args:
            images: Raw images, (B, C, H, W).

        Returns:
            Pixels as in training, (B, C, H, W).
        """
        standardised: Tensor = super().normalize_inputs(images)
        pixels: Tensor = standardised * self.scale + self.offset
        return pixels

    @torch.no_grad()
    def _forward_patch_features(self, images: Tensor) -> Tensor:
        """Pooled features, (B, D), of pixels, (B, C, H, W)."""
        features: Tensor = self.backbone(images)
        return features
