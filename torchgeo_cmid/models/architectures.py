# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The published architectures: all that differs between them, in one table.

A further backbone of a known family is one more entry: model, weights and encoder are
made of it, registered, and known from each other by their tensors.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from timm.models.resnet import Bottleneck

#: Statistics of red, green and blue, of values in 0..1, by which the authors normalise.
MEAN = (0.33797, 0.3605, 0.3348)
STD = (0.1359, 0.1352, 0.1407)


@dataclass(frozen=True)
class Architecture:
    """A backbone that the authors of CMID have published."""

    #: Name of the model and of its default weights.
    name: str
    #: Name of its class of weights.
    weights_class: str
    #: timm's name of the same architecture.
    timm_name: str
    #: timm's name of the first convolution.
    first_conv: str
    #: timm's name of the classifier.
    classifier: str
    #: A tensor by which the authors' files of this backbone are known.
    official_stem: str
    #: timm's names of the stages from the last to the first, then of the stem.
    stages: tuple[str, ...]
    #: What timm's class is built of.
    family: Literal['resnet', 'swin']
    arguments: Mapping[str, Any]
    #: Published files: name -> id of the link, data set, epochs.
    files: Mapping[str, tuple[str, str, int]]
    #: Patterns in timm's names of tensors, and what stands there in the authors' files.
    official_names: tuple[tuple[str, Any], ...] = ()

    @property
    def stem(self) -> str:
        """Timm's name of the filters of the first convolution."""
        return f'{self.first_conv}.weight'

    @property
    def input_module(self) -> str:
        """Timm's name of the module that is given the images."""
        return self.first_conv.removesuffix('.proj')


def _downsample_in_mmcls(match: re.Match[str]) -> str:
    """Timm merges patches before a stage, mmcls after the one before."""
    return f'stages.{int(match[1]) - 1}.downsample.'


RESNET50 = Architecture(
    name='cmid_resnet50',
    weights_class='CMIDResNet50_Weights',
    timm_name='resnet50',
    first_conv='conv1',
    classifier='fc',
    official_stem='conv1.weight',
    stages=('layer4', 'layer3', 'layer2', 'layer1', 'conv1'),
    family='resnet',
    arguments={'block': Bottleneck, 'layers': [3, 4, 6, 3]},
    files={
        'MILLIONAID': ('b2e7ad5d3aea4f569e82', 'MillionAID', 200),
        'POTSDAM': ('d12c2d027d2846119855', 'Potsdam', 400),
    },
)

SWIN_B = Architecture(
    name='cmid_swin_b',
    weights_class='CMIDSwinB_Weights',
    timm_name='swin_base_patch4_window7_224',
    first_conv='patch_embed.proj',
    classifier='head.fc',
    official_stem='patch_embed.projection.weight',
    stages=('layers.3', 'layers.2', 'layers.1', 'layers.0', 'patch_embed'),
    family='swin',
    arguments={
        'embed_dim': 128,
        'depths': (2, 2, 18, 2),
        'num_heads': (4, 8, 16, 32),
        'window_size': 7,
        'strict_img_size': False,
    },
    files={
        'MILLIONAID': ('82a3c7ca7bfc4887aef8', 'MillionAID', 200),
        'POTSDAM': ('92d3d42dce07467f9d8e', 'Potsdam', 400),
    },
    official_names=(  # those of mmcls, which the authors built upon
        (r'^patch_embed\.proj\.', 'patch_embed.projection.'),
        (r'^layers\.(\d+)\.downsample\.', _downsample_in_mmcls),
        (r'^layers\.(\d+)\.blocks\.', r'stages.\1.blocks.'),
        (r'\.attn\.', '.attn.w_msa.'),
        (r'\.mlp\.fc1\.', '.ffn.layers.0.0.'),
        (r'\.mlp\.fc2\.', '.ffn.layers.1.'),
        (r'^norm\.', 'norm3.'),
    ),
)

#: All of them, by their names.
ARCHITECTURES = {architecture.name: architecture for architecture in (RESNET50, SWIN_B)}
