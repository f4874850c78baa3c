# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Filters of an RGB stem for other band sets, and for two dates in one image."""

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .architectures import ARCHITECTURES

_logger = logging.getLogger(__name__)

# Number of bands -> where red, green and blue are: RGB; RGB and near infrared; and
# Sentinel-2 in TorchGeo's order without B01, B09 and B10, without B10, and whole
_RGB_POSITIONS = {
    3: (0, 1, 2),
    4: (0, 1, 2),
    10: (2, 1, 0),
    12: (3, 2, 1),
    13: (3, 2, 1),
}
# Names of red, green and blue, in lower case; B04, B03, B02 are Sentinel-2's
_RGB_NAMES = (('red', 'r', 'b04'), ('green', 'g', 'b03'), ('blue', 'b', 'b02'))
_STEMS = tuple(architecture.stem for architecture in ARCHITECTURES.values())


def adapt_bands(
    state_dict: Mapping[str, Tensor], bands: Sequence[str]
) -> dict[str, Tensor]:
    """Give a backbone that was trained on RGB a stem for any list of bands.

    Red, green and blue keep their filters, every other band starts from their mean, and
    all are scaled by 3 / C, so that activations keep their size.

    Save the result (``torch.save``) and pass the file as *weights* to a task with
    ``in_channels=len(bands)``.

    Args:
        state_dict: The backbone by timm's names, of a ResNet or a Swin, with a stem for
            RGB.
        bands: Names of the bands in the order of the images' bands, among them 'red',
            'green' and 'blue' (or 'R', 'G', 'B', or Sentinel-2's 'B04', 'B03', 'B02').

    Returns:
        The same state dict, but for the stem.

    Raises:
        ValueError: If there is no stem for RGB, or if *bands* does not name each of
            red, green and blue once.
    """
    stem = next((name for name in _STEMS if name in state_dict), None)
    if stem is None or state_dict[stem].shape[1] != 3:
        raise ValueError(f'the state dict has no stem for RGB: {" or ".join(_STEMS)}')
    names = [band.lower() for band in bands]
    rgb = []
    for choices in _RGB_NAMES:
        positions = [i for i, name in enumerate(names) if name in choices]
        if len(positions) != 1:
            raise ValueError(
                f"bands={list(bands)} must hold one band named '{choices[0]}', as "
                f'{" or ".join(repr(choice) for choice in choices)}'
            )
        rgb += positions
    return {**state_dict, stem: _spread(state_dict[stem], rgb, len(bands))}


def adapt_stem(
    weight: Tensor, in_channels: int, source: str, two_dates: bool = False
) -> Tensor:
    """Give a stem the filters for the number of bands that a model has.

    Args:
        weight: Filters of the weights, (D, c, k, k).
        in_channels: Number C of bands of the model. From 3 bands (RGB) to 4 (RGB and
            near infrared) and 10, 12 or 13 (Sentinel-2) it is known which is which.
        source: What to call the weights.
        two_dates: Whether C may be two dates stacked, each of a known number of bands:
            the filters then serve both dates, halved.

    Returns:
        Filters, (D, C, k, k).

    Raises:
        ValueError: If it is not known which band is which.
    """
    bands = weight.shape[1]
    if in_channels == bands:
        return weight
    known = _RGB_POSITIONS if bands == 3 else {}
    if in_channels in known:
        _logger.warning(
            '%s: stem for %d bands made of 3: red, green and blue at positions %s, the '
            'other bands start from their mean, all scaled by 3/%d',
            source,
            in_channels,
            known[in_channels],
            in_channels,
        )
        return _spread(weight, known[in_channels], in_channels)
    half, odd = divmod(in_channels, 2)
    if two_dates and not odd and (half == bands or half in known):
        _logger.warning(
            '%s: stem for %d bands taken as two dates of %d: its filters serve both, '
            'halved',
            source,
            in_channels,
            half,
        )
        date = adapt_stem(weight, half, source)
        return torch.cat([date, date], dim=1) / 2
    raise ValueError(
        f'{source} has a stem for {bands} bands, in_channels is {in_channels}: which '
        f'band is which is only known for {", ".join(map(str, _RGB_POSITIONS))} bands '
        'and weights for RGB. Make a stem for your bands with '
        'torchgeo_cmid.models.adapt_bands(state_dict, bands=[...])'
    )


def expand_statistics(values: Sequence[float], in_channels: int) -> Tensor:
    """Spread a statistic of red, green and blue over the bands of a model.

    Args:
        values: Of red, green and blue.
        in_channels: Number C of bands; twice a known number is two dates.

    Returns:
        (C), double precision; the mean of the three for every other band.
    """
    dates = 1
    if in_channels not in _RGB_POSITIONS and in_channels // 2 in _RGB_POSITIONS:
        dates = 2 if in_channels % 2 == 0 else 1
    bands = torch.full((in_channels // dates,), sum(values) / 3, dtype=torch.float64)
    for position, value in zip(
        _RGB_POSITIONS.get(len(bands), ()), values, strict=False
    ):
        bands[position] = value
    return bands.repeat(dates)


def _spread(weight: Tensor, rgb: Sequence[int], in_channels: int) -> Tensor:
    """Place the filters of red, green and blue among the mean filter, times 3 / C."""
    spread = weight.mean(dim=1, keepdim=True).repeat(1, in_channels, 1, 1)
    spread[:, list(rgb)] = weight
    return spread * (3 / in_channels)
