# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Dates on an axis of their own, and what does not fit."""

from typing import Any

import pytest
import torch

from torchgeo_cmid.transforms.masked_views import join_dates


class TestJoinDates:
    @pytest.mark.parametrize('dates', [1, 2])
    def test_dates_become_bands(self, dates: int) -> None:
        image = torch.rand(2, dates, 3, 8, 8)
        valid = torch.rand(2, dates, 1, 8, 8) > 0.5
        joined = join_dates({'image': image, 'valid': valid}, 3)
        assert joined['image'].shape == (2, 3 * dates, 8, 8)
        for date in range(dates):
            bands = joined['image'][:, 3 * date : 3 * date + 3]
            assert torch.equal(bands, image[:, date])
            assert torch.equal(joined['valid'][:, date], valid[:, date, 0])

    @pytest.mark.parametrize('bands', [3, 6])
    def test_bands_stay(self, bands: int) -> None:
        batch = {
            'image': torch.rand(2, bands, 8, 8),
            'valid': torch.ones(2, 1, 8, 8, dtype=torch.bool),
            'frame': torch.eye(3).expand(2, 3, 3),
        }
        assert join_dates(batch, 3) == {}

    @pytest.mark.parametrize(
        ('changed', 'words'),
        [
            ({'image': torch.rand(2, 3, 3, 8, 8)}, '3 dates of 3 bands'),
            ({'image': torch.rand(2, 2, 4, 8, 8)}, '2 dates of 4 bands'),
            ({'image': torch.rand(3, 8, 8)}, 'must be .B, C, H, W'),
            ({'valid': torch.ones(2, 3, 8, 8)}, "'valid' of shape"),
            ({'valid': torch.ones(2, 2, 4, 4)}, "'valid' of shape"),
            ({'valid': torch.ones(2, 8, 8)}, "'valid' of shape"),
            ({'frame': torch.rand(2, 2, 3, 3)}, "'frame' of shape"),
        ],
    )
    def test_what_does_not_fit(self, changed: dict[str, Any], words: str) -> None:
        batch = {'image': torch.rand(2, 2, 3, 8, 8)} | changed
        with pytest.raises(ValueError, match=words):
            join_dates(batch, 3)
