# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Huge values are limited, all others are left alone."""

import torch

from torchgeo_cmid.transforms import limit_values


class TestLimitValues:
    def test_limits(self) -> None:
        x = torch.tensor([-3e38, -65535.0, 0.1, 1e4, 1e30])
        assert limit_values(x).tolist() == torch.tensor([-1e6, *x[1:4], 1e6]).tolist()
        with torch.autocast('cpu', torch.bfloat16):
            assert limit_values(x)[-1] == 1e6
        with torch.autocast('cpu', torch.float16):
            assert limit_values(x)[-1] == 1e4

    def test_errors_stay_errors(self) -> None:
        x = torch.tensor([torch.inf, -torch.inf, torch.nan])
        assert not torch.isfinite(limit_values(x)).any()
