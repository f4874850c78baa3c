# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The published mean and standard deviation, applied in front of a backbone's stem."""

import logging
from typing import Any

from torch import Tensor, nn

from .bands import expand_statistics
from .published import MEAN, STD

_logger = logging.getLogger(__name__)


class InputNormalization:
    """Normalises images of values in 0..1 as the published weights know them.

    It is a hook in front of the stem, not a layer: the names of the model's tensors
    stay timm's, and every wrapper that takes the model apart keeps it.

    Stock data modules give values in 0..1 (UC Merced, Potsdam, Vaihingen, LEVIR-CD,
    VHR-10), or such as have been standardised by statistics of their own (EuroSAT,
    RESISC45, OSCD), which must not be normalised again. Unless told, it looks at the
    first batch that is not all zero: only standardised bands have negative values.

    Attributes:
        enabled: Whether images are normalised; None: the next batch decides.
    """

    def __init__(self, name: str, in_channels: int, enabled: bool | None) -> None:
        """Initialize a new InputNormalization instance.

        Args:
            name: What to call the model in the log.
            in_channels: Number of bands.
            enabled: Whether to normalise. None: the first batch decides.
        """
        self.name = name
        self.enabled = enabled
        self.set_in_channels(in_channels)

    def set_in_channels(self, in_channels: int) -> None:
        """Spread the published statistics over the bands of the model.

        Args:
            in_channels: Number of bands.
        """
        self.mean = expand_statistics(MEAN, in_channels)
        self.std = expand_statistics(STD, in_channels)

    def __call__(self, stem: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Normalise what the stem is given.

        Args:
            stem: The stem.
            args: Images, (B, C, H, W), and whatever else.

        Returns:
            The same, the images normalised.
        """
        images: Tensor = args[0]
        if images.is_meta:
            return args
        if self.enabled is None:
            self._decide(images)
        if self.enabled is False:
            return args
        mean, std = self.mean.to(images), self.std.to(images)
        return ((images - mean) / std, *args[1:])

    def _decide(self, images: Tensor) -> None:
        """Look at the values of the first batch."""
        low, high = float(images.min()), float(images.max())
        if low == high == 0:
            return
        self.enabled = low >= 0
        _logger.info(
            '%s: values of %.3g to %.3g %s',
            self.name,
            low,
            high,
            'are normalised by the published mean and std'
            if self.enabled
            else 'have been standardised already: they are taken as they are',
        )
        if self.enabled and high > 2:
            _logger.warning(
                '%s was given values of up to %.5g: it takes 0..1 and normalises these '
                'itself. Divide them by their range, or pass normalize=False',
                self.name,
                high,
            )
