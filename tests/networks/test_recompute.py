# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Wide maps are computed anew for the backward pass, to the same gradients."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from torchgeo_cmid.networks import recompute
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


def hooked(model: nn.Module, **kwargs: bool) -> bool:
    with recompute_wide_maps(model, **kwargs):
        return any(module._forward_hooks for module in model.modules())


def test_no_gradient_no_hooks() -> None:
    model = timm.create_model('test_resnet', num_classes=0)
    assert hooked(model)
    with torch.no_grad():
        assert not hooked(model)


def test_switched_off() -> None:
    assert not hooked(timm.create_model('test_resnet', num_classes=0), enabled=False)


def test_compiled_parts_are_left_alone() -> None:
    model = timm.create_model('test_resnet', num_classes=0)
    model.layer1.compile(backend='eager')  # type: ignore[union-attr, operator]
    assert not hooked(model)
    model = timm.create_model('test_resnet', num_classes=0)
    assert not hooked(torch.compile(model, backend='eager'))  # type: ignore[arg-type]


def test_compiles() -> None:
    """Regression: a guard on weak references failed on the frame that made it."""
    model = timm.create_model('test_resnet', num_classes=0).train()

    @torch.compile(backend='aot_eager', fullgraph=True)
    def forward(x: Tensor) -> Tensor:
        with recompute_wide_maps(model):
            features: Tensor = model.forward_features(x)  # type: ignore[operator]
            return features

    x = torch.randn(2, 3, 64, 64)
    forward(x).square().mean().backward()
    actual = [p.grad for p in model.parameters()]
    model.zero_grad()
    model.forward_features(x).square().mean().backward()  # type: ignore[operator]
    expected = [p.grad for p in model.parameters()]
    torch.testing.assert_close(actual, expected)


# What may follow on a map (B, D, n, n) of which the convolution gives the address. Each
# keeps something of it for the backward pass.
FOLLOWING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'output': lambda y, w: y * w,
    'transpose': lambda y, w: y.mT * w,  # regression: the gradient was another
    'transpose of channels': lambda y, w: y.transpose(0, 1) * w[:, :, :, :1],
    'permute': lambda y, w: y.permute(1, 0, 3, 2) * w[:, :, :, :1],
    'detach': lambda y, w: y.detach() * w,
    'detach and transpose': lambda y, w: y.detach().mT * w + y,
    'view': lambda y, w: y.view(4, 4, -1) * w.view(4, 4, -1),
    'reshape to itself': lambda y, w: y.reshape(4, 4, 4, 4) * w,
    'slice': lambda y, w: y[:2] * w[:2],
    'narrow columns': lambda y, w: y[..., :1] * w[..., :1],
    'expand': lambda y, w: y[:, :, :1, :1].expand(4, 4, 4, 4) * w,
    'as strided': lambda y, w: y.as_strided((4, 4, 4, 4), (64, 16, 1, 4)) * w,
    'flip': lambda y, w: y.flip(3) * w,
    'memory format': lambda y, w: y.contiguous(memory_format=torch.channels_last) * w,
    'other type': lambda y, w: y.detach().view(torch.int32).bitwise_and(7) * w + y,
    'in place': lambda y, w: y.mul_(w) * w,
    'in place on a view': lambda y, w: (y[0].mul_(2.0), y * w)[1],
    'in place on a transpose': lambda y, w: (y.mT.add_(1.0), y * w)[1],
    'in place on detached': lambda y, w: (y.detach().mul_(2.0), y * w)[1],
    'in place on a square': lambda y, w: y.transpose_(2, 3) * w,
    'exp': lambda y, w: y.exp() * w,
    'relu in place': lambda y, w: nn.functional.relu(y, inplace=True) * w,
    'matmul': lambda y, w: y @ y.mT * w,
}


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('name', FOLLOWING)
def test_whatever_follows(name: str, channels_last: bool) -> None:
    """Bit for bit the gradients of plain autograd."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        convolution = nn.Conv2d(2, 4, 1)
        x = torch.randn(4, 2, 4, 4, requires_grad=True)
        weight = torch.randn(4, 4, 4, 4, requires_grad=True)
        with recompute_wide_maps(convolution, enabled):
            kept = x.contiguous(memory_format=torch.channels_last)
            y = convolution(kept if channels_last else x)
            z = FOLLOWING[name](y, weight)
        (z * torch.randn_like(z)).sum().backward()
        leaves = x, weight, *convolution.parameters()
        found.append([leaf.grad for leaf in leaves])
    for plain, anew in zip(*found, strict=True):
        assert (plain is None) == (anew is None)
        assert plain is None or torch.equal(plain, anew)


def doubled(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    return nn.Conv2d.forward(convolution, 2 * x)


def twice(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def twice_in_place(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output.mul_(2)


@pytest.mark.parametrize('change', [twice, twice_in_place, 'forward', 'global'])
def test_output_that_others_have_changed(change: Any) -> None:
    """Regression: what a hook made of the output was taken for the output."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        convolution = nn.Conv2d(2, 4, 1)
        handle = None
        if change == 'forward':
            convolution.forward = partial(doubled, convolution)  # type: ignore[method-assign]
        elif change == 'global':
            handle = nn.modules.module.register_module_forward_hook(twice)
        else:
            convolution.register_forward_hook(change)
        x = torch.randn(4, 2, 4, 4, requires_grad=True)
        with recompute_wide_maps(convolution, enabled):
            z = convolution(x)
            z = z * z
        if handle is not None:
            handle.remove()
        z.sum().backward()
        found.append((x.grad, convolution.weight.grad))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize('changed', ['x', 'weight', 'bias', 'other', 'nothing'])
def test_changed_before_its_use(changed: str, frozen: bool) -> None:
    """Regression: gradients came from values that were not those used, no error."""
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        convolution = nn.Conv2d(2, 4, 1).requires_grad_(not frozen)
        leaf = torch.randn(4, 2, 4, 4, requires_grad=True)
        with recompute_wide_maps(convolution, enabled):
            x = leaf + 0
            y = convolution(x)
            other = (0.1 * y * y).exp()
            z = other * 1
        tensors = {'x': x, 'other': other} | dict(convolution.named_parameters())
        with torch.no_grad():
            tensors.get(changed, torch.zeros(1)).mul_(2)
        if changed in ('x', 'weight', 'other'):
            with pytest.raises(RuntimeError, match='modified by an inplace operation'):
                z.sum().backward()
        else:
            z.sum().backward()
            found.append(leaf.grad)
    assert not found or torch.equal(*found)


def test_second_gradient() -> None:
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        convolution = nn.Conv2d(2, 4, 1)
        x = torch.randn(4, 2, 4, 4, requires_grad=True)
        with recompute_wide_maps(convolution, enabled):
            z = convolution(x).pow(3).sum()
        (first,) = torch.autograd.grad(z, x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), x)[0])
    assert torch.equal(*found)


def test_arguments_by_name() -> None:
    """Regression: a convolution that is called by name ended in an IndexError."""
    convolution = nn.Conv2d(2, 4, 1)
    with recompute_wide_maps(convolution):
        convolution(input=torch.randn(4, 2, 4, 4)).sum().backward()
