# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Views, masks and position matching, as pure kornia and torch."""

from .fill import fill_with_valid_mean, warp_valid
from .limits import limit_values
from .masked_views import MaskedViews, TwoMaskedViews
from .masking import expand_mask, fill_with_spectral_mean, random_cell_mask
from .matching import (
    Matches,
    cell_grid,
    find_matches,
    match_cells,
    take_matches,
    valid_cells,
)
from .photometric import MultispectralPhotometric, RGBPhotometric
from .views import Views, default_views

__all__ = (
    'MaskedViews',
    'Matches',
    'MultispectralPhotometric',
    'RGBPhotometric',
    'TwoMaskedViews',
    'Views',
    'cell_grid',
    'default_views',
    'expand_mask',
    'fill_with_spectral_mean',
    'fill_with_valid_mean',
    'find_matches',
    'limit_values',
    'match_cells',
    'random_cell_mask',
    'take_matches',
    'valid_cells',
    'warp_valid',
)
