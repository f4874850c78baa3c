# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Wide maps are computed anew for the backward pass, to the same gradients."""

import contextlib

import pytest
import timm
import torch
from torch import Tensor, nn

from torchgeo_cmid.models import recompute
from torchgeo_cmid.networks.recompute import recompute_wide_maps


def gradients(name: str, autocast: bool, anew: bool) -> list[Tensor]:
    """Gradients and buffers after one pass, with all randomness the same."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | timm.layers.DropPath):
            module.eval()
    saving = recompute_wide_maps(model) if anew else contextlib.nullcontext()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast), saving:
        features = model.forward_features(torch.randn(2, 3, 64, 64))  # type: ignore[operator]
    features.float().square().mean().backward()
    found = [p.grad for p in model.parameters() if p.grad is not None]
    return [*found, *model.buffers()]


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize(
    ('name', 'number'),
    [
        ('resnet50', 15),  # all widening ones but that of the last stage
        ('resnet18', 3),  # of the shortcuts
        # regression: memory of a map that was not kept came to hold another one
        ('efficientnet_b0', 15),
        ('convnext_atto', 10),
        ('resnetv2_50', 0),  # its convolutions standardise their weights
    ],
)
def test_same_gradients(
    name: str, number: int, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    call = recompute._Recipe.__call__

    def counted(recipe: recompute._Recipe) -> Tensor:
        calls.append(recipe)
        return call(recipe)

    monkeypatch.setattr(recompute._Recipe, '__call__', counted)
    expected = gradients(name, autocast, anew=False)
    assert not calls
    actual = gradients(name, autocast, anew=True)
    assert len(calls) == number
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_no_gradient_no_hooks() -> None:
    model = timm.create_model('resnet18', num_classes=0)
    with torch.no_grad(), recompute_wide_maps(model):
        assert not any(module._forward_hooks for module in model.modules())
