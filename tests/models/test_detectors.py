# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""TorchGeo's detection tasks take the weights that their other tasks take."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchgeo.main import main
from torchgeo.tasks import InstanceSegmentation, ObjectDetection
from torchvision.models import ResNet18_Weights
from torchvision.ops import FrozenBatchNorm2d

from torchgeo_cmid.models.detectors import is_torchvision

MODELS = ['faster-rcnn', 'fcos', 'retinanet']


def weights_file(folder: Path, model: str, bands: int = 3) -> tuple[Any, str]:
    """A backbone whose norms have seen something, and its file."""
    torch.manual_seed(0)
    backbone = timm.create_model(model, in_chans=bands, num_classes=0)
    backbone.train()(torch.rand(4, bands, 64, 64))
    path = str(folder / f'{model}.safetensors')
    save_file(backbone.state_dict(), path)
    return backbone.eval(), path


def last_map(task: Any, images: torch.Tensor) -> torch.Tensor:
    """What the ResNet within a detector gives last."""
    maps: dict[str, torch.Tensor] = task.model.backbone.body(images)
    return maps['3']


class TestObjectDetection:
    @pytest.mark.parametrize('model', MODELS)
    @pytest.mark.parametrize('bands', [3, 5])
    def test_file(self, tmp_path: Path, model: str, bands: int) -> None:
        """The body computes what timm's backbone does, its norms frozen."""
        backbone, path = weights_file(tmp_path, 'resnet18', bands)
        task: Any = ObjectDetection(
            model, 'resnet18', weights=path, in_channels=bands, num_classes=3
        )
        images = torch.rand(2, bands, 64, 64)
        expected = backbone.forward_features(images)
        torch.testing.assert_close(last_map(task.train(), images), expected)
        assert task.hparams['in_channels'] == bands

    def test_trained_layers(self, tmp_path: Path) -> None:
        _, path = weights_file(tmp_path, 'resnet18')
        task: Any = ObjectDetection(backbone='resnet18', weights=path, num_classes=3)
        trained = {
            name.partition('.')[0]
            for name, parameter in task.model.backbone.body.named_parameters()
            if parameter.requires_grad
        }
        assert trained >= {'layer2', 'layer3', 'layer4'}
        assert 'layer1' not in trained

    def test_freeze_backbone(self, tmp_path: Path) -> None:
        _, path = weights_file(tmp_path, 'resnet18')
        task: Any = ObjectDetection(
            backbone='resnet18', weights=path, num_classes=3, freeze_backbone=True
        )
        layers = [
            parameter
            for name, parameter in task.model.backbone.named_parameters()
            if 'conv1' not in name  # TorchGeo makes a new, trainable stem
        ]
        assert not any(parameter.requires_grad for parameter in layers)

    @pytest.mark.parametrize(
        ('model', 'words'),
        [('vit_tiny_patch16_224', 'have ResNets'), ('resnet34', 'does not fit')],
    )
    def test_other_architecture(self, tmp_path: Path, model: str, words: str) -> None:
        path = str(tmp_path / 'w.safetensors')
        save_file(timm.create_model(model, num_classes=0).state_dict(), path)
        with pytest.raises(ValueError, match=words):
            ObjectDetection(backbone='resnet18', weights=path, num_classes=3)

    def test_no_such_weights(self) -> None:
        with pytest.raises(ValueError, match=r"'cmid_resnet5'.*did you mean"):
            ObjectDetection(weights='cmid_resnet5', num_classes=3)


class TestInstanceSegmentation:
    def test_file(self, tmp_path: Path) -> None:
        backbone, path = weights_file(tmp_path, 'resnet50')
        task: Any = InstanceSegmentation(weights_backbone=path, num_classes=3)
        images = torch.rand(2, 3, 64, 64)
        expected = backbone.forward_features(images)
        body = task.train().model.backbone.body
        torch.testing.assert_close(last_map(task, images), expected)
        parameters = dict(body.named_parameters())
        assert not parameters['layer1.0.conv1.weight'].requires_grad
        assert parameters['layer2.0.conv1.weight'].requires_grad


@pytest.mark.parametrize(
    ('task', 'argument'),
    [('ObjectDetection', 'weights'), ('InstanceSegmentation', 'weights_backbone')],
)
def test_command(task: str, argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Regression: the parser refused every name and every file."""
    weights = f'--model.{argument}=cmid_resnet50'
    with pytest.raises(SystemExit) as end:
        main(['fit', '--model', task, weights, '--print_config'])
    assert end.value.code == 0
    assert f'{argument}: cmid_resnet50' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('weights', 'expected'),
    [
        (None, True),
        (True, True),
        ('IMAGENET1K_V1', True),
        ('ResNet18_Weights.DEFAULT', True),
        (ResNet18_Weights.IMAGENET1K_V1, True),
        ('cmid_resnet50', False),
        ('ResNet18_Weights.SENTINEL2_RGB_MOCO', False),
    ],
)
def test_torchvision_keeps_its_own(weights: Any, expected: bool) -> None:
    assert is_torchvision(weights, 'resnet18') is expected


def test_without_weights_nothing_is_frozen() -> None:
    task: Any = ObjectDetection('fcos', 'resnet18', num_classes=3)
    kinds = {type(module) for module in task.model.backbone.body.modules()}
    assert FrozenBatchNorm2d not in kinds
