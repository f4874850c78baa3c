# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The two published backbones for other tasks: as timm models and as smp encoders.

Stock models of these architectures do not carry the weights into every TorchGeo task:
smp names Swin's tensors its own way and fixes its input at 224 px.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from segmentation_models_pytorch.encoders._base import EncoderMixin  # type: ignore[import-untyped]
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torchvision.models._api import WeightsEnum

from .architectures import ARCHITECTURES, MEAN, RESNET50, STD, SWIN_B, Architecture
from .loading import BackboneState, get_state_dict, load_strictly
from .normalization import PUBLISHED, InputNormalization, attach

_CONFIGS: dict[str, dict[str, Any]] = {
    name: {
        'input_size': (3, 224, 224),
        'mean': MEAN,
        'std': STD,
        'pool_size': (7, 7),
        'first_conv': each.first_conv,
        'classifier': each.classifier,
    }
    for name, each in ARCHITECTURES.items()
}
default_cfgs = generate_default_cfgs(
    {f'{name}.millionaid': config for name, config in _CONFIGS.items()}
)

# Family -> timm's class, and what else it needs to be built as timm builds it
_FAMILIES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    'resnet': (ResNet, {}),
    'swin': (
        SwinTransformer,
        {'feature_cfg': {'out_indices': (0, 1, 2, 3), 'flatten_sequential': True}},
    ),
}


def _model(architecture: Architecture) -> Callable[..., nn.Module]:
    """Make the function that builds a model, for TorchGeo's and timm's registries."""
    family, options = _FAMILIES[architecture.family]

    def build(
        weights: WeightsEnum | str | None = None,
        *,
        pretrained: bool = False,
        normalize: bool | None = None,
        unit: float | None = 1.0,
        **kwargs: Any,
    ) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            family,
            architecture.name,
            pretrained=False,
            **options,
            **{**architecture.arguments, **kwargs},
        )
        stem = model.get_parameter(architecture.stem)
        _prepare(model, architecture, stem.shape[1], normalize, unit)
        chosen = weights or (architecture.name if pretrained else None)
        if chosen is not None:
            state = get_state_dict(chosen)
            load_strictly(model, state, str(chosen))
            follow_pixels(model, state)
        return model

    build.__name__ = build.__qualname__ = architecture.name
    build.__doc__ = f"""{architecture.name}, which normalises its images itself.

    It is timm's ``{architecture.timm_name}``. In a run of a TorchGeo task it finds out
    what has been done to the images; in plain Python *unit* says what they hold.

    If you use this model in your research, please cite the following paper:

    * https://arxiv.org/abs/2304.09670

    Args:
        weights: Pre-trained weights: a weight enum, its name, or a file.
        pretrained: Load the weights that were pre-trained on MillionAID.
        normalize: Whether images are normalised by the mean and std of the weights (of
            the published ones, where there are none). None: a run decides; in plain
            Python, they are.
        unit: The number that stands for 1 in the images: 255 for 8-bit images, 10000
            for reflectance times 10,000. None: they hold raw numbers, as in training.
        **kwargs: Additional keyword arguments to pass to
            :class:`timm.models.{family.__module__.rpartition('.')[2]}.{family.__name__}`.

    Returns:
        The model.

    Raises:
        ValueError: If the weights do not fit, or if more than 1 % of the values of the
            first four batches are implausible for *unit*.
    """
    return build


#: The models of each architecture by its name.
MODELS = {name: _model(each) for name, each in ARCHITECTURES.items()}
cmid_resnet50 = MODELS[RESNET50.name]
cmid_swin_b = MODELS[SWIN_B.name]


class _Encoder(EncoderMixin):  # type: ignore[misc]
    """What both encoders of segmentation_models_pytorch have in common."""

    name: str
    architecture: Architecture
    pretrained_cfg: dict[str, Any]
    input_normalization: InputNormalization

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Make a random stem for another number of bands, before weights are loaded.

        Args:
            in_channels: Number of bands.
            pretrained: Not used: :meth:`load_state_dict` adapts the filters.
        """
        stem: Any = self.get_submodule(self.architecture.first_conv)
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
        follow_pixels(self, state_dict)
        return torch.nn.modules.module._IncompatibleKeys([], [])


class ResNetEncoder(_Encoder, ResNet):
    """A published ResNet as an encoder of segmentation_models_pytorch."""

    def __init__(
        self,
        depth: int = 5,
        output_stride: int = 32,
        normalize: bool | None = None,
        unit: float | None = 1.0,
        architecture: Architecture = RESNET50,
    ) -> None:
        """Initialize a new ResNetEncoder instance.

        Args:
            depth: Number of stages, 1 to 5.
            output_stride: Stride of the last stage; less than 32 dilates it.
            normalize: As of :func:`cmid_resnet50`.
            unit: As of :func:`cmid_resnet50`.
            architecture: Which of its family it is.
        """
        arguments = architecture.arguments
        ResNet.__init__(self, num_classes=0, global_pool='', **arguments)
        self.name, self.architecture = architecture.name, architecture
        self.pretrained_cfg = _CONFIGS[architecture.name]
        self._depth, self._output_stride = depth, output_stride
        self._out_channels = [3, *(each['num_chs'] for each in self.feature_info)]
        _prepare(self, architecture, 3, normalize, unit)

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
    """A published Swin as an encoder of segmentation_models_pytorch.

    As every transformer there it has no map at stride 2 (0 channels), and the maps have
    no final norm.
    """

    def __init__(
        self,
        depth: int = 5,
        output_stride: int = 32,
        normalize: bool | None = None,
        unit: float | None = 1.0,
        architecture: Architecture = SWIN_B,
    ) -> None:
        """Initialize a new SwinEncoder instance.

        Args:
            depth: Number of stages, 2 to 5.
            output_stride: Stride of the last stage, 32.
            normalize: As of :func:`cmid_resnet50`.
            unit: As of :func:`cmid_resnet50`.
            architecture: Which of its family it is.

        Raises:
            ValueError: If *output_stride* is not 32.
        """
        if output_stride != 32:
            raise ValueError(
                f'output_stride={output_stride} must be 32: the stages of a Swin can '
                'not be dilated. Use unet or upernet, or cmid_resnet50'
            )
        arguments = architecture.arguments
        SwinTransformer.__init__(self, num_classes=0, global_pool='', **arguments)
        self.name, self.architecture = architecture.name, architecture
        self.pretrained_cfg = _CONFIGS[architecture.name]
        self._depth, self._output_stride = depth, output_stride
        self._out_channels = [3, 0, *(each['num_chs'] for each in self.feature_info)]
        self.norm = nn.Identity()
        _prepare(self, architecture, 3, normalize, unit)

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


#: The encoders of each architecture by its name.
ENCODERS: dict[str, Callable[..., ResNetEncoder | SwinEncoder]] = {
    name: partial(
        {'resnet': ResNetEncoder, 'swin': SwinEncoder}[each.family], architecture=each
    )
    for name, each in ARCHITECTURES.items()
}


def follow_pixels(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Let a model of ours normalise as the weights that were loaded know it.

    Args:
        model: The model.
        state: The tensors; where they do not tell, the statistics stay what they were.
    """
    if isinstance(state, BackboneState) and state.pixels is not None:
        model.input_normalization.take_pixels(state.pixels)  # type: ignore[operator, union-attr]


def _prepare(
    model: nn.Module,
    architecture: Architecture,
    in_channels: int,
    normalize: bool | None,
    unit: float | None,
) -> None:
    """Put the hooks in place that normalise images and let windows fit any size."""
    normalization = InputNormalization(
        architecture.name, in_channels, PUBLISHED, normalize, unit
    )
    attach(model, architecture.input_module, normalization)
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
