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

# Cost per byte saved grows with the input's channels: beyond this it does not pay
_MAX_IN_CHANNELS = 256


def _widens(module: nn.Module) -> bool:
    """Tell whether a layer is a cheap convolution with a large output."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and 2 * module.in_channels <= module.out_channels
        and module.in_channels <= _MAX_IN_CHANNELS
    )


class _Recipe:
    """How to compute the output of a convolution anew."""

    def __init__(self, convolution: nn.Module, x: Tensor, output: Tensor) -> None:
        self.convolution = convolution
        self.x = x.detach()
        self.shape, self.version = output.shape, output._version
        device = output.device.type
        self.autocast: dict[str, Any] = {
            'device_type': device,
            'dtype': torch.get_autocast_dtype(device),
            'enabled': torch.is_autocast_enabled(device),
        }

    def __call__(self) -> Tensor:
        """Compute the output."""
        with torch.no_grad(), torch.autocast(**self.autocast):
            output: Tensor = self.convolution.forward(self.x)
            return output


@contextmanager
def recompute_wide_maps(model: nn.Module) -> Iterator[None]:
    """Within this context, a forward pass does not keep the outputs that widen a map.

    Losses and gradients stay the same, bit for bit.

    Args:
        model: The model whose forward pass is to come.

    Yields:
        Nothing.
    """
    recipes: dict[int, _Recipe] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        place = output.data_ptr()
        recipes[place] = _Recipe(module, args[0], output)
        # its memory is free for other tensors as soon as nothing needs it
        weakref.finalize(output, recipes.pop, place, None)

    def pack(tensor: Tensor) -> Any:
        recipe = recipes.get(tensor.data_ptr())
        if recipe is None or recipe.shape != tensor.shape:
            return tensor
        # not the output any more, but what was made of it in place
        return tensor if recipe.version != tensor._version else recipe

    def unpack(kept: Any) -> Tensor:
        tensor: Tensor = kept() if isinstance(kept, _Recipe) else kept
        return tensor

    if not torch.is_grad_enabled():
        yield
        return
    with ExitStack() as stack:
        for module in filter(_widens, model.modules()):
            stack.enter_context(module.register_forward_hook(record))
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, unpack))
        yield
