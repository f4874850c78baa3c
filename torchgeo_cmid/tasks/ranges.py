# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The range of every argument of a pre-training, in one table."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..numeric_range import Range
from ..rules import PUBLISHED, RULES

_COUNT = Range(1, whole=True)
_POSITIVE = Range(0, with_low=False)
_SHARE = Range(0, 1)

#: Argument of :class:`~torchgeo_cmid.tasks.CMID` -> its range.
RANGES: dict[str, Range] = {
    'in_channels': _COUNT,
    'size': _COUNT,
    'mask_patch_size': _COUNT,
    'mask_ratio': Range(0, 1, with_low=False),
    'frequency_weight': Range(0),
    'queue_size': _COUNT,
    'temperature': _POSITIVE,
    'projection_dim': _COUNT,
    'hidden_dim': _COUNT,
    'num_prototypes': Range(2, whole=True),
    'bottleneck_dim': _COUNT,
    'num_matches': _COUNT,
    'student_temperature': _POSITIVE,
    'teacher_temperature': _POSITIVE,
    'warmup_teacher_temperature': _POSITIVE,
    'warmup_teacher_temperature_epochs': Range(0),
    'sharpness': _POSITIVE,
    'center_momentum': _SHARE,
    'momentum': _SHARE,
    'final_momentum': _SHARE,
    'lr': _POSITIVE,
    'weight_decay': Range(0),
    'warmup_epochs': Range(0),
    'min_lr': Range(0),
}


def check_ranges(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments out of their range.

    Args:
        arguments: Arguments by name; those without a range are left alone.

    Raises:
        ValueError: If one is out of its range; name, value and range are named.
    """
    for name, allowed in RANGES.items():
        value = arguments[name]
        if value is None and name in RULES | PUBLISHED:
            continue
        if not allowed.holds(value):
            raise ValueError(f'{name}={value} must be {allowed}')
    lr, least = arguments['lr'], arguments['min_lr']
    if lr is not None and least > lr:
        raise ValueError(f'min_lr={least}, the rate at the end, is above lr={lr}')


def check_loss_weights(weights: Sequence[float], branches: Mapping[str, bool]) -> None:
    """Refuse weights of losses with which nothing, or the opposite, is learnt.

    Args:
        weights: Weights of the branches.
        branches: The branches in their order, and whether they are on.

    Raises:
        ValueError: If there is no weight for each, one is negative or infinite, or all
            of those that are on are 0.
    """
    if len(weights) != len(branches):
        raise ValueError(
            f'loss_weights={weights} must be three numbers: {", ".join(branches)}'
        )
    if not all(Range(0).holds(weight) for weight in weights):
        raise ValueError(f'loss_weights={weights} must be three numbers, {Range(0)}')
    on = [w for w, used in zip(weights, branches.values(), strict=True) if used]
    if not any(on):
        raise ValueError(
            f'loss_weights={weights} is 0 for every branch that is on: nothing would '
            'be learnt'
        )
