# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Arguments out of their range end in an error when the task is made."""

import inspect
import math
import re
from typing import Any

import pytest

from tests.tasks.tiny import TINY
from torchgeo_cmid.tasks import CMID
from torchgeo_cmid.tasks.ranges import RANGES, Range

#: Arguments that are no numbers.
OTHERS = {
    'self',
    'model',
    'weights',
    'global_branch',
    'local_branch',
    'reconstruction_branch',
    'loss_weights',
    'local_head_norm',
    'optimizer',
    'augmentations',
    'recompute',
    'recipe',
}


def outside(allowed: Range) -> list[Any]:
    """Values just outside, and some that are no numbers at all."""
    values: list[Any] = [math.nan, math.inf, -math.inf, '1', True, allowed.low - 1]
    if not allowed.with_low:
        values.append(allowed.low)
    if not math.isinf(allowed.high):
        values.append(allowed.high + 1e-9)
    if allowed.whole:
        values.append(allowed.low + 0.5)
    return values


def test_every_number_has_a_range() -> None:
    assert set(inspect.signature(CMID.__init__).parameters) - OTHERS == set(RANGES)


def test_defaults_are_in_range() -> None:
    for name, parameter in inspect.signature(CMID.__init__).parameters.items():
        if name in RANGES and parameter.default is not None:
            assert RANGES[name].holds(parameter.default), name


def test_rate_at_the_end() -> None:
    """Regression: the learning rate rose to the lowest, and the loss with it."""
    with pytest.raises(ValueError, match=r'min_lr=1, .* above lr=0.001'):
        CMID(**(TINY | {'lr': 1e-3, 'min_lr': 1}))


@pytest.mark.parametrize('name', RANGES)
def test_out_of_range(name: str) -> None:
    for value in outside(RANGES[name]):
        with pytest.raises(
            ValueError, match=rf'^{name}={re.escape(str(value))} must be'
        ):
            CMID(**(TINY | {'model': 'test_resnet', name: value}))


@pytest.mark.parametrize(
    ('weights', 'off', 'message'),
    [
        ((0, 0, 0), {}, 'nothing would be learnt'),
        ((1, 0, 0), {'reconstruction_branch': False}, 'nothing would be learnt'),
        ((-1, 1, 1), {}, 'must be three numbers'),
        ((math.nan, 1, 1), {}, 'must be three numbers'),
        ((1, 1), {}, 'must be three numbers: reconstruction, global, local'),
    ],
)
def test_loss_weights(weights: Any, off: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CMID(**TINY, model='test_resnet', loss_weights=weights, **off)
