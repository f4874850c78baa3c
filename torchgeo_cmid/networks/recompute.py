# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Less memory for a backward pass: wide maps are computed anew, not kept.

A bottleneck ends with a convolution of one pixel that widens the map: its output is
large, a batch norm keeps it for the backward pass, and it is cheap to compute anew from
its input, which is kept anyway: a quarter of a ResNet-50's activations.
"""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import is_compiled

# Cost per byte saved grows with the input's channels: beyond this it does not pay
_MAX_IN_CHANNELS = 256


def _widens(module: nn.Module) -> bool:
    """Tell whether a layer is a cheap convolution with a large output."""
    return (
        type(module) is nn.Conv2d
        and 'forward' not in vars(module)  # it may compute anything
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and 2 * module.in_channels <= module.out_channels
        and module.in_channels <= _MAX_IN_CHANNELS
    )


class _Kept:
    """A tensor as autograd itself keeps it: an error if it is changed before its use.

    Autograd leaves this check out where it is asked to keep something else.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor.detach(), tensor._version

    def __call__(self) -> Tensor:
        """Give the tensor."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                'a tensor of shape '
                f'{tuple(self.tensor.shape)} that the gradient needs has been modified '
                f'by an inplace operation: it is at version {self.tensor._version}, '
                f'expected version {self.version}'
            )
        return self.tensor


class _Recipe:
    """How to compute the output of a convolution anew."""

    def __init__(self, convolution: nn.Conv2d, x: Tensor, output: Tensor) -> None:
        self.convolution = convolution
        # autograd keeps these two for the gradient of the convolution itself
        self.x, self.weight = _Kept(x), _Kept(convolution.weight)
        bias = convolution.bias
        self.bias = None if bias is None else bias.detach().clone()
        # its memory is free for other tensors as soon as nothing needs it
        self.output = weakref.ref(output)
        self.layout = _layout(output)
        device = output.device.type
        self.autocast: dict[str, Any] = {
            'device_type': device,
            'dtype': torch.get_autocast_dtype(device),
            'enabled': torch.is_autocast_enabled(device),
        }

    def __call__(self) -> Tensor:
        """Compute the output."""
        with torch.no_grad(), torch.autocast(**self.autocast):
            output: Tensor = self.convolution._conv_forward(
                self.x(), self.weight(), self.bias
            )
            return output


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    """What two tensors at one address share if they hold the same values.

    The version tells the output from what was made of it in place, the strides from its
    transpose.
    """
    offset, dtype = tensor.storage_offset(), tensor.dtype
    return tensor.shape, tensor.stride(), offset, dtype, tensor._version


@contextmanager
def recompute_wide_maps(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Within this context, a forward pass does not keep the outputs that widen a map.

    Losses and gradients stay the same, bit for bit. Without gradients, while compiling,
    or if any part of the model is compiled, this does nothing.

    Args:
        model: The model whose forward pass is to come.
        enabled: Whether to do so at all.

    Yields:
        Nothing.
    """
    if (
        torch.compiler.is_compiling()
        or not enabled
        or not torch.is_grad_enabled()
        or any(map(is_compiled, model.modules()))
    ):
        yield
        return

    recipes: dict[int, _Recipe] = {}  # by the address of their outputs

    def record(module: nn.Conv2d, args: tuple[Tensor, ...], output: Tensor) -> None:
        grad_fn = output.grad_fn  # a hook for all modules may have replaced the output
        if args and grad_fn is not None and grad_fn.name() == 'ConvolutionBackward0':
            recipes[output.data_ptr()] = _Recipe(module, args[0], output)

    def pack(tensor: Tensor) -> _Kept | _Recipe:
        recipe = recipes.get(tensor.data_ptr())
        if (
            recipe is None
            or recipe.output() is None
            or recipe.layout != _layout(tensor)
        ):
            return _Kept(tensor)
        return recipe

    def unpack(kept: _Kept | _Recipe) -> Tensor:
        return kept()

    with ExitStack() as stack:
        # the backward pass lets go of each input as soon as it has been used
        stack.callback(recipes.clear)
        for module in filter(_widens, model.modules()):
            stack.enter_context(module.register_forward_hook(record, prepend=True))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, unpack))
        yield
