# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where tasks keep their backbones: asked of real tasks, by what is found there."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torchgeo.tasks import (
    BYOL,
    MAE,
    ChangeDetection,
    Classification,
    InstanceSegmentation,
    MoCo,
    ObjectDetection,
    PixelwiseRegression,
    Regression,
    SemanticSegmentation,
    SimCLR,
)

from torchgeo_cmid.models.find_backbone import HOMES, find_backbone, find_teacher
from torchgeo_cmid.tasks import CMID, CMIDObjectDetection

RESNET = 'test_resnet'


class Supervised(Classification):
    """A user's task, which inherits from TorchGeo's."""


#: Name of a task's class -> how it is made, and the attribute that its backbone has.
TASKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    'BYOL': (lambda: BYOL(model=RESNET), 'forward_features'),
    'CMID': (
        lambda: CMID(model=RESNET, size=64, hidden_dim=16, num_prototypes=8),
        'forward_features',
    ),
    'CMIDObjectDetection': (
        lambda: CMIDObjectDetection(num_classes=2),
        'forward_features',
    ),
    'ChangeDetection': (
        lambda: ChangeDetection(model='fcsiamdiff', backbone='resnet18'),
        'out_channels',
    ),
    'Classification': (
        lambda: Classification(model=RESNET, num_classes=2),
        'forward_features',
    ),
    'InstanceSegmentation': (lambda: InstanceSegmentation(num_classes=2), 'layer4'),
    'MAE': (
        lambda: MAE(model='test_vit', size=160, decoder_dim=64, decoder_num_heads=2),
        'forward_features',
    ),
    'MoCo': (lambda: MoCo(model=RESNET, version=2), 'forward_features'),
    'ObjectDetection': (
        lambda: ObjectDetection(backbone='resnet18', num_classes=2),
        'layer4',
    ),
    'PixelwiseRegression': (
        lambda: PixelwiseRegression(model='unet', backbone='resnet18'),
        'out_channels',
    ),
    'Regression': (lambda: Regression(model=RESNET), 'forward_features'),
    'SemanticSegmentation': (
        lambda: SemanticSegmentation(backbone='resnet18', num_classes=2),
        'out_channels',
    ),
    'SimCLR': (lambda: SimCLR(model=RESNET), 'forward_features'),
    'Supervised': (lambda: Supervised(model=RESNET, num_classes=2), 'forward_features'),
}
PAIRS = {'BYOL', 'CMID', 'MoCo'}


def test_every_task_of_the_table_is_tried() -> None:
    assert HOMES.keys() < TASKS.keys()


@pytest.mark.parametrize('name', TASKS)
def test_tasks(name: str) -> None:
    """The backbone is the outermost network of its kind."""
    make, attribute = TASKS[name]
    task = make()
    backbone, teacher = find_backbone(task), find_teacher(task)
    # the student is made before the teacher, and both before what is built on them
    assert backbone is next(m for m in task.modules() if hasattr(m, attribute))
    assert (teacher is not None) == (name in PAIRS)
    if teacher is not None:
        assert teacher is not backbone
        shapes = {k: v.shape for k, v in backbone.state_dict().items()}
        assert {k: v.shape for k, v in teacher.state_dict().items()} == shapes
        assert any(p.requires_grad for p in backbone.parameters())
        assert not any(p.requires_grad for p in teacher.parameters())


def test_compiled() -> None:
    task = SimCLR(model=RESNET)
    task.backbone = torch.compile(task.backbone, backend='eager')
    assert find_backbone(task) is task.backbone


def test_path() -> None:
    """A path wins over the table, and any module will do."""
    task = SemanticSegmentation(backbone='resnet18', num_classes=2)
    assert find_backbone(task, 'model.encoder.layer4') is task.model.encoder.layer4
    own = nn.ModuleDict({'trunk': timm.create_model(RESNET)})
    assert find_backbone(own, 'trunk') is own['trunk']
    assert find_teacher(own) is None


def test_unknown_task() -> None:
    own = nn.ModuleDict({'trunk': nn.Sequential(nn.Identity()), 'head': nn.Identity()})
    with pytest.raises(ValueError, match=r'^ModuleDict: .*: trunk, trunk\.0, head$'):
        find_backbone(own)


def test_wrong_path() -> None:
    task = SimCLR(model=RESNET)
    with pytest.raises(
        ValueError, match=r"^SimCLR: it has no module 'model'.*backbone\.conv1"
    ):
        find_backbone(task, 'model')


def test_known_task_of_another_make() -> None:
    """TorchGeo's FCN has no encoder, which is said and not guessed."""
    task = SemanticSegmentation(model='fcn', num_classes=2)
    with pytest.raises(ValueError, match=r"no module 'model\.encoder'.*model\.last"):
        find_backbone(task)


def test_without_lightning() -> None:
    program = 'import sys, torchgeo_cmid.models.find_backbone; print(*sys.modules)'
    result = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True
    )
    assert 'lightning' not in result.stdout.split()
