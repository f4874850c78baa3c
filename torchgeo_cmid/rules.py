# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Defaults that depend on how long a run is, as rules.

The published numbers belong to 990,848 images, 200 epochs and batches of 256. At that
scale, and beyond it, each rule gives the published number; below it one that fits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Scale:
    """How long a run is, and on how much data."""

    #: Number S of optimizer steps.
    steps: int
    #: Number of optimizer steps of an epoch.
    steps_per_epoch: int
    #: Number of patches of an epoch.
    patches: int
    #: Number of patches in a step, over all processes and accumulated batches.
    batch_size: int

    @property
    def epochs(self) -> float:
        """Number of epochs, the last perhaps not whole."""
        return self.steps / self.steps_per_epoch

    @property
    def seen(self) -> int:
        """Number of patches that are seen in the whole run."""
        return self.steps * self.batch_size


class Setting(NamedTuple):
    """What a rule has decided, and why."""

    value: float | int | None
    reason: str


def lr(scale: Scale) -> Setting:
    """Learning rate: 0.00625 sqrt(batch / 256), the authors' rule.

    Args:
        scale: The scale of the run.

    Returns:
        The learning rate after the warm-up.
    """
    rate = 0.00625 * math.sqrt(scale.batch_size / 256)
    return Setting(rate, f'a global batch of {scale.batch_size} patches')


def momentum(scale: Scale) -> Setting:
    """Momentum m0 of the teacher at the start: 1 - 9.2 / S, in 0.5..0.996.

    With it about exp(-4.6) = 1 % of the random network that a teacher begins as is left
    in it at the end, for over a run of S steps m(n) goes from m0 to 1 along a cosine
    and the share that is left is exp(-(1 - m0) S / 2).

    Args:
        scale: The scale of the run.

    Returns:
        The momentum, 0.996 from 2,300 steps on.
    """
    value = max(0.5, min(0.996, 1 - 9.2 / scale.steps))
    return Setting(value, f'{scale.steps} steps')


def warmup_epochs(scale: Scale) -> Setting:
    """Warm-up of the learning rate: 10 epochs, at most a tenth of the run.

    Args:
        scale: The scale of the run.

    Returns:
        The number of epochs, not always whole.
    """
    return _at_most(10.0, 0.1, scale)


def warmup_teacher_temperature_epochs(scale: Scale) -> Setting:
    """Warm-up of the teacher's temperature: 50 epochs, at most 30 % of the run.

    Args:
        scale: The scale of the run.

    Returns:
        The number of epochs, not always whole.
    """
    return _at_most(50.0, 0.3, scale)


def _at_most(epochs: float, share: float, scale: Scale) -> Setting:
    """Published epochs, or less: a share of the run."""
    value = min(epochs, share * scale.epochs)
    return Setting(value, f'a run of {scale.epochs:g} epochs')


def queue_size(scale: Scale) -> Setting:
    """Keys in use: 65,536, at most the patches of an epoch.

    In a longer queue earlier keys of the same patch become negatives.

    Args:
        scale: The scale of the run.

    Returns:
        The number of keys.
    """
    value = min(65536, scale.patches)
    return Setting(value, f'{scale.patches} patches an epoch')


def num_prototypes(scale: Scale) -> Setting:
    """Prototypes in use: a power of two, 256 to 2,048, of 100 patches seen or more.

    Args:
        scale: The scale of the run.

    Returns:
        The number of prototypes.
    """
    power = math.floor(math.log2(max(scale.seen / 100, 1)))
    return Setting(min(2048, max(256, 2**power)), f'{scale.seen} patches seen')


def sharpness(scale: Scale) -> Setting:
    """Spread of the teacher's logits over its temperature: 2 below 20,000 steps.

    Args:
        scale: The scale of the run.

    Returns:
        The sharpness, or None for a temperature that is fixed.
    """
    return Setting(2.0 if scale.steps < 20_000 else None, f'{scale.steps} steps')


#: Argument of :class:`~torchgeo_cmid.tasks.CMID` that may be None -> its rule.
RULES: dict[str, Callable[[Scale], Setting]] = {
    rule.__name__: rule
    for rule in (
        lr,
        momentum,
        warmup_epochs,
        warmup_teacher_temperature_epochs,
        queue_size,
        num_prototypes,
        sharpness,
    )
}

#: The numbers of the publication for what may be left open: they hold without a run,
#: and at its scale. The learning rate follows the batch in both.
PUBLISHED: dict[str, float | int | None] = {
    'momentum': 0.996,
    'warmup_epochs': 10,
    'warmup_teacher_temperature_epochs': 50,
    'queue_size': 65536,
    'num_prototypes': 2048,
    'sharpness': None,
    'teacher_temperature': 0.07,
}


def published(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put the published number in the place of each argument that is left open.

    Args:
        arguments: Arguments of the task, None for one that is left open.

    Returns:
        All arguments.
    """
    return {
        name: PUBLISHED.get(name) if value is None else value
        for name, value in arguments.items()
    }


def settle(arguments: Mapping[str, Any], scale: Scale) -> dict[str, Setting]:
    """Decide what is left open, for the scale of a run.

    Args:
        arguments: Arguments of the task, None for one that is left open.
        scale: The scale of the run.

    Returns:
        What was decided, by the name of the argument; nothing for a branch that is off.
    """
    idle: set[str] = set()
    if arguments['global_branch'] != 'moco':
        idle |= {'queue_size'}
    if not arguments['local_branch']:
        idle |= {'num_prototypes', 'sharpness', 'warmup_teacher_temperature_epochs'}
    if arguments['teacher_temperature'] is not None:
        idle |= {'sharpness'}
    if arguments['recipe'] == 'published':
        idle |= RULES.keys() - {'lr'}
    return {
        name: rule(scale)
        for name, rule in RULES.items()
        if arguments[name] is None and name not in idle
    }
