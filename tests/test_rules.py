# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Defaults that follow from the scale of a run."""

import math
from typing import Any

import pytest

from torchgeo_cmid.rules import PUBLISHED, RULES, Scale, published, settle
from torchgeo_cmid.schedules import Schedules, cosine

#: MillionAID's test split, 200 epochs, batches of 256.
MILLION_AID = Scale(
    steps=774_000, steps_per_epoch=3870, patches=990_720, batch_size=256
)
BEYOND = Scale(
    steps=7_740_000, steps_per_epoch=38_700, patches=9_907_200, batch_size=256
)
#: 5,000 images, two hours.
SMALL = Scale(steps=400, steps_per_epoch=79, patches=5056, batch_size=64)

OPEN: dict[str, Any] = {name: None for name in RULES | PUBLISHED} | {
    'recipe': 'scaled',
    'global_branch': 'moco',
    'local_branch': True,
    'min_lr': 1e-6,
    'final_momentum': 1.0,
    'warmup_teacher_temperature': 0.04,
}


def values(scale: Scale, **given: Any) -> dict[str, Any]:
    return {name: s.value for name, s in settle(OPEN | given, scale).items()}


@pytest.mark.parametrize('scale', [MILLION_AID, BEYOND])
def test_published_scale(scale: Scale) -> None:
    """The published numbers, and never more than these."""
    found = values(scale)
    assert found.pop('lr') == 0.00625
    assert found == {name: PUBLISHED[name] for name in found}
    assert found.keys() | {'lr'} == RULES.keys()


def test_small_scale() -> None:
    found = values(SMALL)
    assert found == {
        'lr': 0.003125,
        'momentum': pytest.approx(0.977),
        'warmup_epochs': pytest.approx(40 / 79),
        'warmup_teacher_temperature_epochs': pytest.approx(0.3 * 400 / 79),
        'queue_size': 5056,
        'num_prototypes': 256,
        'sharpness': 2.0,
    }
    reason = settle(OPEN, SMALL)['momentum'].reason
    assert reason == '400 steps'


@pytest.mark.parametrize('name', RULES)
def test_no_jump_beyond_the_published_number(name: str) -> None:
    """From one step to the published scale, each rule lies between its two ends."""
    ends = values(Scale(1, 1, 2, 2))[name], values(MILLION_AID)[name]
    if None in ends:
        return
    for power in range(20):
        steps = 2**power
        scale = Scale(steps, max(1, steps // 200), max(2, steps), 256)
        assert min(ends) <= values(scale)[name] <= max(max(ends), 0.00625)


@pytest.mark.parametrize('steps', [20, 100, 400, 1500, 2299])
def test_little_of_the_random_network_is_left_in_the_teacher(steps: int) -> None:
    scale = Scale(steps, 10, 640, 64)
    start = values(scale)['momentum']
    left = math.prod(cosine(n, steps, start, 1.0) for n in range(steps))
    assert left < 0.0125
    # with the published number it would be
    published_left = math.prod(cosine(n, steps, 0.996, 1.0) for n in range(steps))
    assert published_left > left


@pytest.mark.parametrize(
    ('steps', 'expected'), [(2299, 1 - 9.2 / 2299), (2300, 0.996), (19_999, 0.996)]
)
def test_momentum_on_both_sides(steps: int, expected: float) -> None:
    assert values(Scale(steps, 10, 640, 64))['momentum'] == pytest.approx(expected)


@pytest.mark.parametrize(('steps', 'expected'), [(19_999, 2.0), (20_000, None)])
def test_sharpness_on_both_sides(steps: int, expected: float | None) -> None:
    """The switch is by the number of steps alone."""
    for per_epoch, batch_size in [(10, 64), (1000, 4096)]:
        scale = Scale(steps, per_epoch, per_epoch * batch_size, batch_size)
        assert values(scale)['sharpness'] == expected


def test_recipe_published() -> None:
    """All rules are set aside, but for the learning rate's, which is published."""
    assert values(SMALL, recipe='published') == {'lr': 0.003125}


@pytest.mark.parametrize(
    ('given', 'idle'),
    [
        ({'global_branch': 'byol'}, {'queue_size'}),
        ({'global_branch': None}, {'queue_size'}),
        (
            {'local_branch': False},
            {'num_prototypes', 'sharpness', 'warmup_teacher_temperature_epochs'},
        ),
    ],
)
def test_nothing_is_decided_for_a_branch_that_is_off(
    given: dict[str, Any], idle: set[str]
) -> None:
    assert values(SMALL, **given).keys() == RULES.keys() - idle


def test_what_is_typed_is_not_decided() -> None:
    given = {'momentum': 0.9, 'queue_size': 7, 'lr': 1.0, 'teacher_temperature': 0.05}
    found = values(SMALL, **given)
    assert not found.keys() & (given.keys() | {'sharpness'})
    assert published(OPEN | given)['momentum'] == 0.9


def test_warm_up_ends_within_the_run() -> None:
    """Regression: the rate that was announced was never reached."""
    settings = published(OPEN) | values(SMALL)
    schedules = Schedules(settings, SMALL.steps, SMALL.steps_per_epoch)
    rates = [schedules.learning_rate(n) for n in range(SMALL.steps)]
    assert max(rates) > 0.97 * settings['lr']
    assert rates.index(max(rates)) == 40
