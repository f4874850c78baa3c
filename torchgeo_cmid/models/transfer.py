# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The two published backbones for other tasks: as timm models and as smp encoders.

Stock models of these architectures do not carry the weights into every TorchGeo task:
smp names Swin's tensors its own way and fixes its input at 224 px.
"""

from collections.abc import Mapping
from typing import Any

import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin  # type: ignore[import-untyped]
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from .loading import get_state_dict, load_strictly
from .normalization import InputNormalization
from .published import MEAN, STD

_INPUT = {'input_size': (3, 224, 224), 'mean': MEAN, 'std': STD, 'pool_size': (7, 7)}
_CONFIGS: dict[str, dict[str, Any]] = {
    'cmid_resnet50': {**_INPUT, 'first_conv': 'conv1', 'classifier': 'fc'},
    'cmid_swin_b': {
        **_INPUT,
        'first_conv': 'patch_embed.proj',
        'classifier': 'head.fc',
    },
}
default_cfgs = generate_default_cfgs(
    {f'{name}.millionaid': config for name, config in _CONFIGS.items()}
)
_RESNET50: dict[str, Any] = {'block': Bottleneck, 'layers': [3, 4, 6, 3]}
_SWIN_B: dict[str, Any] = {
    'embed_dim': 128,
    'depths': (2, 2, 18, 2),
    'num_heads': (4, 8, 16, 32),
    'window_size': 7,
    'strict_img_size': False,
}


def cmid_resnet50(
    weights: WeightsEnum | str | None = None,
    *,
    pretrained: bool = False,
    normalize: bool | None = None,
    **kwargs: Any,
) -> nn.Module:
    """ResNet-50 that takes values in 0..1.

    If you use this model in your research, please cite the following paper:

    * https://arxiv.org/abs/2304.09670

    Args:
        weights: Pre-trained weights: a weight enum, its name, or a file.
        pretrained: Load the weights that were pre-trained on MillionAID.
        normalize: Whether images are normalised by the published mean and std. None: if
            the first batch has no negative values; see
            :class:`~torchgeo_cmid.models.normalization.InputNormalization`.
        **kwargs: Additional keyword arguments to pass to
            :class:`timm.models.resnet.ResNet`.

    Returns:
        A ResNet-50 model.
    """
    name = 'cmid_resnet50'
    model: nn.Module = build_model_with_cfg(
        ResNet, name, pretrained=False, **_RESNET50, **kwargs
    )
    return _finish(model, name, weights, pretrained, normalize)


def cmid_swin_b(
    weights: WeightsEnum | str | None = None,
    *,
    pretrained: bool = False,
    normalize: bool | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Swin-B that takes values in 0..1 and images of any multiple of 32 px.

    If you use this model in your research, please cite the following paper:

    * https://arxiv.org/abs/2304.09670

    Args:
        weights: As of :func:`cmid_resnet50`.
        pretrained: As of :func:`cmid_resnet50`.
        normalize: As of :func:`cmid_resnet50`.
        **kwargs: Additional keyword arguments to pass to
            :class:`timm.models.swin_transformer.SwinTransformer`.

    Returns:
        A Swin-B model.
    """
    name = 'cmid_swin_b'
    model: nn.Module = build_model_with_cfg(
        SwinTransformer,
        name,
        pretrained=False,
        feature_cfg={'out_indices': (0, 1, 2, 3), 'flatten_sequential': True},
        **{**_SWIN_B, **kwargs},
    )
    return _finish(model, name, weights, pretrained, normalize)


class _Encoder(EncoderMixin):  # type: ignore[misc]
    """What both encoders of segmentation_models_pytorch have in common."""

    name: str
    pretrained_cfg: dict[str, Any]
    input_normalization: InputNormalization

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Make a random stem for another number of bands, before weights are loaded.

        Args:
            in_channels: Number of bands.
            pretrained: Not used: :meth:`load_state_dict` adapts the filters.
        """
        stem: Any = self.get_submodule(self.pretrained_cfg['first_conv'])
        if stem.in_channels == in_channels:
            return
        stem.in_channels = in_channels
        shape = (stem.out_channels, in_channels, *stem.kernel_size)
        stem.weight = nn.Parameter(stem.weight.new_empty(shape))
        nn.init.kaiming_normal_(stem.weight, mode='fan_out', nonlinearity='relu')
        self._out_channels[0] = in_channels
        self.input_normalization.set_in_channels(in_channels)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a backbone strictly, but for Swin's final norm.

        The stem is adapted to the bands, or to two dates that are stacked.

        Args:
            state_dict: The tensors by timm's names.
            strict: Not used: loading is always strict.
            assign: Not used.

        Returns:
            What could not be loaded: nothing.

        Raises:
            ValueError: If a tensor is missing, unexpected or of another shape.
        """
        source = f'weights of {self.name}'
        load_strictly(self, state_dict, source, two_dates=True, excused=('norm.',))
        return torch.nn.modules.module._IncompatibleKeys([], [])


class ResNetEncoder(_Encoder, ResNet):
    """The ResNet-50 as an encoder of segmentation_models_pytorch."""

    pretrained_cfg = _CONFIGS['cmid_resnet50']

    def __init__(
        self, depth: int = 5, output_stride: int = 32, normalize: bool | None = None
    ) -> None:
        """Initialize a new ResNetEncoder instance.

        Args:
            depth: Number of stages, 1 to 5.
            output_stride: Stride of the last stage; less than 32 dilates it.
            normalize: Whether images are normalised. None: the first batch decides.
        """
        ResNet.__init__(self, num_classes=0, global_pool='', **_RESNET50)
        self.name = 'cmid_resnet50'
        self._depth, self._output_stride = depth, output_stride
        self._out_channels = [3, 64, 256, 512, 1024, 2048]
        _prepare(self, self.name, 3, normalize)

    def get_stages(self) -> dict[int, list[Any]]:
        """Name the stages that can be dilated, by their stride."""
        return {16: [self.layer3], 32: [self.layer4]}

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Compute the features of all stages.

        Args:
            x: Images, (B, C, H, W).

        Returns:
            The images and *depth* maps of features at strides 2, 4, ...
        """
        stages = (
            ('conv1', 'bn1', 'act1'),
            ('maxpool', 'layer1'),
            ('layer2',),
            ('layer3',),
            ('layer4',),
        )
        features = [x]
        for stage in stages[: self._depth]:
            for name in stage:
                x = getattr(self, name)(x)
            features.append(x)
        return features


class SwinEncoder(_Encoder, SwinTransformer):
    """The Swin-B as an encoder of segmentation_models_pytorch.

    As every transformer there it has no map at stride 2 (0 channels), and the maps have
    no final norm.
    """

    pretrained_cfg = _CONFIGS['cmid_swin_b']

    def __init__(
        self, depth: int = 5, output_stride: int = 32, normalize: bool | None = None
    ) -> None:
        """Initialize a new SwinEncoder instance.

        Args:
            depth: Number of stages, 2 to 5.
            output_stride: Stride of the last stage, 32.
            normalize: Whether images are normalised. None: the first batch decides.

        Raises:
            ValueError: If *output_stride* is not 32.
        """
        if output_stride != 32:
            raise ValueError(
                f'output_stride={output_stride} must be 32: the stages of cmid_swin_b '
                'can not be dilated. Use unet or upernet, or cmid_resnet50'
            )
        SwinTransformer.__init__(self, num_classes=0, global_pool='', **_SWIN_B)
        self.name = 'cmid_swin_b'
        self._depth, self._output_stride = depth, output_stride
        self._out_channels = [3, 0, 128, 256, 512, 1024]
        self.norm = nn.Identity()
        _prepare(self, self.name, 3, normalize)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """Compute the features of all stages.

        Args:
            x: Images, (B, C, H, W).

        Returns:
            The images, an empty map at stride 2, and maps of features at strides 4, 8,
            16 and 32, *depth* in all without the images.
        """
        batch, _, height, width = x.shape
        empty = x.new_empty(batch, 0, height // 2, width // 2)
        maps = self.forward_intermediates(
            x, indices=list(range(self._depth - 1)), intermediates_only=True
        )
        return [x, empty, *maps]


ENCODERS: dict[str, type[ResNetEncoder | SwinEncoder]] = {
    'cmid_resnet50': ResNetEncoder,
    'cmid_swin_b': SwinEncoder,
}


def _prepare(
    model: nn.Module, name: str, in_channels: int, normalize: bool | None
) -> None:
    """Put the hooks in place that normalise images and let windows fit any size."""
    normalization = InputNormalization(name, in_channels, normalize)
    stem: Any = model.conv1 if hasattr(model, 'conv1') else model.patch_embed
    stem.register_forward_pre_hook(normalization)
    model.input_normalization = normalization  # type: ignore[assignment]
    for block in model.modules():
        if isinstance(block, SwinTransformerBlock):
            block.register_forward_pre_hook(_shift_windows)


def _shift_windows(block: SwinTransformerBlock, args: tuple[Tensor, ...]) -> None:
    """Shift windows where a map is larger than one window, as in pre-training.

    timm decides once, for the size that the model was made for.
    """
    height, width = args[0].shape[1:3]  # (B, H, W, C)
    window, shift = block.window_size, block.target_shift_size
    block.shift_size = (
        0 if height <= window[0] else shift[0],
        0 if width <= window[1] else shift[1],
    )


def _finish(
    model: nn.Module,
    name: str,
    weights: WeightsEnum | str | None,
    pretrained: bool,
    normalize: bool | None,
) -> nn.Module:
    """Prepare a model that timm has built, and load its weights if there are any."""
    stem: Any = model.get_parameter(f'{_CONFIGS[name]["first_conv"]}.weight')
    _prepare(model, name, stem.shape[1], normalize)
    weights = weights or (name if pretrained else None)
    if weights is not None:
        load_strictly(model, get_state_dict(weights), str(weights))
    return model
