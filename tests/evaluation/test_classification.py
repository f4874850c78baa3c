# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""All measures of labelled images at once, and what is missing for them."""

import sys

import pytest
import torch

from torchgeo_cmid.evaluation import Features, evaluate_classification

NAMES = {'knn', 'knn5', 'knn5_standardised', 'linear', 'few_shot_1', 'few_shot_5'}


def test_perfect_embedding() -> None:
    y = torch.arange(27) % 3
    memory = Features(torch.eye(3)[y], y)
    found = evaluate_classification(memory, memory)
    assert found == {each + kind: 1.0 for each in NAMES for kind in ('', '_macro')}


def test_misleading_embedding() -> None:
    """Queries of class 0 look like class 1: only class 2 is found."""
    y = torch.arange(36) % 3
    x = torch.eye(3)[y]
    swapped = x[:, [1, 0, 2]]
    found = evaluate_classification(
        Features(x, y), Features(swapped, y), held_out=Features(x, y)
    )
    expected = {*NAMES, 'few_shot_10'}
    assert found == {
        each + kind: pytest.approx(1 / 3)
        for each in expected
        for kind in ('', '_macro')
    }


def test_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition('.')[0] == 'sklearn']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    memory = Features(torch.eye(2).repeat(5, 1), torch.arange(10) % 2)
    with pytest.raises(ModuleNotFoundError, match=r'torchgeo-cmid\[eval\]'):
        evaluate_classification(memory, memory)


def test_one_class() -> None:
    memory = Features(torch.randn(30, 2), torch.zeros(30).long())
    with pytest.raises(ValueError, match=r'all of class \[0\]: .* two classes'):
        evaluate_classification(memory, memory)


def test_fewer_images_than_neighbours() -> None:
    memory = Features(torch.eye(4), torch.arange(4) % 2)
    with pytest.raises(ValueError, match=r'4 labelled images are fewer than .* 5'):
        evaluate_classification(memory, memory)
