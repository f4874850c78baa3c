# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Any timm backbone as a map of features, with a hook at its stem."""

import copy
import difflib
import math
from typing import Any

import timm
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ..transforms.masking import expand_mask

# Where the features right after the stem come out: ResNet after max-pool, Swin and ViT
# after the patch embedding (before positions are added), ConvNeXt, RegNet, ... after
# the stem; any other family where timm takes its first map of features.
_STEMS = ('maxpool', 'patch_embed', 'stem')


def _create_timm_model(
    name: str, in_channels: int, size: int, pretrained: bool
) -> nn.Module:
    """Create a timm model without classifier, drop path and dropout."""
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f'; did you mean {", ".join(near)}?' if near else ''
        raise ValueError(f"model='{name}' is not a timm model{hint}")
    config = timm.get_pretrained_cfg(name)
    # Swin and ViT are built for one input size
    fixed: dict[str, Any] = (
        {'img_size': size} if config and config.fixed_input_size else {}
    )
    model: nn.Module = timm.create_model(
        name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **fixed
    )
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def is_compiled(module: nn.Module) -> bool:
    """Tell whether a module was compiled, in place or by a wrapper around it.

    Args:
        module: Any module.

    Returns:
        Whether :meth:`torch.nn.Module.compile` was called on it, or it is what
        :func:`torch.compile` gave.
    """
    return module._compiled_call_impl is not None or '_orig_mod' in module._modules


def feature_map(backbone: nn.Module, x: Tensor) -> Tensor:
    """Compute the last features of a timm model of any family as a map.

    Args:
        backbone: The timm model, compiled or not.
        x: Images, (B, C, S, S).

    Returns:
        Map of features, (B, D, h, w): of a transformer its patch tokens.
    """
    features = _last_features(backbone, x)
    if features.ndim == 3:  # (B, prefix + h w, D)
        tokens = features[:, getattr(backbone, 'num_prefix_tokens', 0) :]
        side = math.isqrt(tokens.shape[1])
        return tokens.mT.reshape(len(tokens), -1, side, side)
    if getattr(backbone, 'output_fmt', 'NCHW') == 'NHWC':
        return features.permute(0, 3, 1, 2)
    return features


def _last_features(backbone: nn.Module, x: Tensor) -> Tensor:
    """Compute what a timm model gives before it pools, compiled if it is."""
    features: Tensor
    if torch.compiler.is_compiling() or not is_compiled(backbone):
        features = backbone.forward_features(x)  # type: ignore[operator]
        return features
    # What is compiled is the call of the model, and that pools. A call runs what the
    # model has as `forward`.
    model: Any = getattr(backbone, '_orig_mod', backbone)
    model.forward = model.forward_features
    try:
        features = backbone(x)
    finally:
        del model.forward
    return features


class _StemHook:
    """Adds a token to what a stem gives, where a mask is set; without a mask nothing.

    It stays on the stem: a compiler takes each new hook for another model.
    """

    token: Tensor | None = None
    mask: Tensor | None = None

    def __init__(self, channels_first: bool) -> None:
        self.channels_first = channels_first

    def __call__(
        self, stem: nn.Module, args: tuple[Tensor, ...], features: Tensor
    ) -> Tensor:
        """Add the token."""
        if self.token is None or self.mask is None:
            return features
        if self.channels_first:  # (B, D, h, w)
            positions = expand_mask(self.mask, features.shape[2])
            return features + self.token.view(1, -1, 1, 1) * positions.to(features)
        side = math.isqrt(features[0, ..., 0].numel())
        positions = expand_mask(self.mask, side).flatten(2).mT  # (B, h w, 1)
        return features + (self.token * positions.to(features)).view_as(features)


class SpatialBackbone(nn.Module):
    """A timm model whose last features are a map, (B, D, h, w).

    Attributes:
        backbone: The timm model.
        num_features: Number D of channels of the map.
        map_size: Height h and width w of the map, in cells.
        stride: Pixels per cell.
        stem_features: Number of channels right after the stem.
        stem_is_channels_first: Whether the stem gives (B, D, h, w).
    """

    def __init__(
        self, model: str, in_channels: int, size: int, pretrained: bool = False
    ) -> None:
        """Initialize a new SpatialBackbone instance.

        Args:
            model: Name of the timm model.
            in_channels: Number of bands C of the images.
            size: Height and width S of the images in pixels.
            pretrained: Start from timm's ImageNet weights.

        Raises:
            ValueError: If timm has no such model, or if its last features are no map
                whose cells divide the image.
        """
        super().__init__()
        self.backbone = _create_timm_model(model, in_channels, size, pretrained)
        # convolutions are fastest on (B, H, W, D) in memory, on CPUs by a sixth
        self.backbone.to(memory_format=torch.channels_last)
        self.num_features = int(self.backbone.num_features)  # type: ignore[arg-type]
        self._stem = self._find_stem(model)
        self._measure(model, in_channels, size)
        self._stem_hook()

    @property
    def stem(self) -> nn.Module:
        """The module after whose output the mask token is added."""
        return self.backbone.get_submodule(self._stem)

    def _find_stem(self, model: str) -> str:
        """Name the module after whose output the mask token is added."""
        for name in _STEMS:
            if hasattr(self.backbone, name):
                return name
        feature_info = getattr(self.backbone, 'feature_info', None)
        if not feature_info:
            raise ValueError(
                f"model='{model}' has no stem that CMID knows ({', '.join(_STEMS)}) "
                'and no feature_info: the mask token can not be added to its features'
            )
        return str(feature_info[0]['module'])

    def forward(self, x: Tensor) -> Tensor:
        """Compute the last features.

        Args:
            x: Images, (B, C, S, S).

        Returns:
            Map of features, (B, D, h, w).
        """
        return feature_map(self.backbone, x)

    def forward_masked(self, x: Tensor, token: Tensor, mask: Tensor) -> Tensor:
        """Compute the last features, with a token added after the stem.

        Args:
            x: Images, (B, C, S, S).
            token: Added to the stem's features where masked, (1, stem features).
            mask: Mask of cells, (B, n, n) bool, True = masked.

        Returns:
            Map of features, (B, D, h, w).
        """
        hook = self._stem_hook()
        hook.token, hook.mask = token, mask
        try:
            return feature_map(self.backbone, x)
        finally:
            hook.token = hook.mask = None

    def _stem_hook(self) -> _StemHook:
        """Find the hook on the stem; a backbone put in later has none yet."""
        for hook in self.stem._forward_hooks.values():
            if isinstance(hook, _StemHook):
                return hook
        hook = _StemHook(self.stem_is_channels_first)
        self.stem.register_forward_hook(hook)
        return hook

    def _measure(self, model: str, in_channels: int, size: int) -> None:
        """Find the shapes, and freeze what the map does not depend on.

        A probe on the meta device costs no arithmetic. Parameters such as the norm
        after ConvNeXt's pooling have no influence on the map: they are frozen.
        """
        probe = copy.deepcopy(self).to('meta').train()
        stem_shapes: list[torch.Size] = []
        probe.stem.register_forward_hook(
            lambda *args: stem_shapes.append(args[2].shape)
        )
        try:
            features = probe(torch.empty(2, in_channels, size, size, device='meta'))
            shape = tuple(features.shape)
        except (RuntimeError, AttributeError, TypeError, AssertionError) as error:
            raise ValueError(
                f"model='{model}' gives no map of features for images of {size} x "
                f'{size} px: {error}'
            ) from error
        if len(shape) != 4 or shape[1] != self.num_features or shape[2] != shape[3]:
            raise ValueError(
                f"model='{model}' gives features of shape {shape[1:]} for images of "
                f'{size} x {size} px, not a square map of {self.num_features} channels'
            )
        # ViT silently drops the border that is no whole cell
        reduction = self.backbone.feature_info[-1]['reduction']  # type: ignore[index]
        if size != shape[2] * reduction:
            raise ValueError(
                f"model='{model}' gives {shape[2]} x {shape[3]} cells: size={size} "
                f'must be a multiple of its stride, {reduction} px'
            )
        self.map_size = (shape[2], shape[3])
        self.stride = int(reduction)
        # (B, D, h, w), not (B, h, w, D) or (B, h w, D); by its name where h = w = D
        _, *sides = stem_shapes[0]
        self.stem_is_channels_first = len(sides) == 3 and (
            sides[1] == sides[2]
            if sides[0] != sides[1]
            else sides[1] == sides[2] and self._stem != 'patch_embed'
        )
        self.stem_features = sides[0 if self.stem_is_channels_first else -1]
        features.sum().backward()
        for name, parameter in probe.named_parameters():
            if parameter.grad is None:
                self.get_parameter(name).requires_grad_(False)
