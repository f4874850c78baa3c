# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Weights of other pre-trainings, and encoders of smp that are asked for ours."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from torch import Tensor
from torchgeo.models import get_model
from torchgeo.tasks import BYOL, MAE, MoCo, SimCLR

from torchgeo_cmid import CMID
from torchgeo_cmid.models.loading import load_strictly, read_backbone

SMALL: dict[str, Any] = {'model': 'resnet18', 'in_channels': 3}


def resnet(**kwargs: Any) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = timm.create_model('resnet18', **({'num_classes': 0} | kwargs))
    return dict(model.state_dict())


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f'{prefix}{name}': tensor for name, tensor in state.items()}


def noise(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


HEAD = {'fc.0.weight': torch.rand(4, 4), 'fc.2.weight': torch.rand(2, 4)}
FILES = {
    'MoCo v2': {
        'arch': 'resnet18',
        'state_dict': under('module.encoder_q.', resnet() | HEAD)
        | under('module.encoder_k.', noise(resnet()))
        | {'module.queue': torch.rand(4, 8)},
    },
    'MoCo v3': {
        'state_dict': under('module.base_encoder.', resnet() | HEAD)
        | under('module.momentum_encoder.', noise(resnet()))
    },
    'DINO': {
        'teacher': under('backbone.', resnet()) | {'head.mlp.0.weight': torch.rand(3)},
        'student': under('module.backbone.', noise(resnet())),
        'epoch': 3,
    },
    'teacher by prefix': under('teacher.', resnet())
    | under('student.', noise(resnet())),
}


@pytest.mark.parametrize('content', FILES.values(), ids=list(FILES))
def test_files_of_others(
    content: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / 'other.pth'
    torch.save(content, path)
    with caplog.at_level('INFO'):
        state = read_backbone(path)
    model = timm.create_model('resnet18')
    load_strictly(model, state, 'other')
    for name, tensor in resnet().items():
        assert torch.equal(model.state_dict()[name], tensor)
    said = [r.getMessage() for r in caplog.records if 'are left out' in r.getMessage()]
    assert len(said) == 1
    assert 'other.pth' in said[0]


@pytest.mark.parametrize(
    ('task', 'home'),
    [
        (lambda: MoCo(**SMALL, memory_bank_size=16), 'backbone'),
        (lambda: SimCLR(**SMALL), 'backbone'),
        (lambda: BYOL(**SMALL), 'model.backbone.model'),
    ],
    ids=['MoCo', 'SimCLR', 'BYOL'],
)
def test_tasks_of_torchgeo(task: Any, home: str, tmp_path: Path) -> None:
    """A checkpoint of another pre-training task goes on as CMID."""
    source = task()
    path = tmp_path / 'ssl.ckpt'
    hparams = {'model': 'resnet18'}
    content = {'state_dict': source.state_dict(), 'hyper_parameters': hparams}
    torch.save(content, path)
    own = CMID(**SMALL, size=64, queue_size=16, weights=str(path))
    expected = source.get_submodule(home).state_dict()
    for name, tensor in own.student.backbone.state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_masked_autoencoder_of_torchgeo(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its encoder is taken, its decoder left out, and that is said."""
    arguments = {'model': 'test_vit', 'size': 160}
    source = MAE(**arguments, decoder_dim=64, decoder_num_heads=2)
    path = tmp_path / 'mae.ckpt'
    content = {'state_dict': source.state_dict(), 'hyper_parameters': arguments}
    torch.save(content, path)
    with caplog.at_level('INFO'):
        own = CMID(**arguments, in_channels=3, queue_size=16, weights=str(path))
    expected = source.backbone.vit.state_dict()
    found = own.student.backbone.state_dict()
    assert found.keys() & expected.keys() >= found.keys() - {'mask_token'}
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name
    said = [r.getMessage() for r in caplog.records if 'left out' in r.getMessage()]
    assert len(said) == 1
    assert 'decoder' in said[0]


@pytest.mark.parametrize('decoder', [smp.Unet, smp.UPerNet, smp.FPN])
def test_encoder_weights(decoder: Any, tmp_path: Path) -> None:
    path = tmp_path / 'backbone.pth'
    state = timm.create_model('cmid_resnet50', num_classes=0).state_dict()
    torch.save(state, path)
    model = decoder('cmid_resnet50', encoder_weights=str(path)).eval()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert model(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_encoder_weights_unknown() -> None:
    with pytest.raises(ValueError, match="'imagenet' is neither a file nor a weight"):
        smp.Unet('cmid_resnet50', encoder_weights='imagenet')


def test_swin_with_smaller_windows(tmp_path: Path) -> None:
    """A map of 4 x 4 cells has windows of 4: offsets keep their bias."""
    torch.manual_seed(0)
    full = timm.create_model('cmid_swin_b', num_classes=0)
    for parameter in full.parameters():
        parameter.requires_grad_(False).copy_(torch.randn_like(parameter) * 0.02)
    torch.save(full.state_dict(), tmp_path / 'swin.pth')
    small = get_model('cmid_swin_b', weights=str(tmp_path / 'swin.pth'), img_size=64)
    before, after = (model.layers[2].blocks[0].attn for model in (full, small))
    assert (before.window_size, after.window_size) == ((7, 7), (4, 4))

    def bias(attention: Any, first: tuple[int, int], second: tuple[int, int]) -> Tensor:
        side = attention.window_size[1]
        cells = [row * side + column for row, column in (first, second)]
        return attention._get_rel_pos_bias()[0][:, cells[0], cells[1]]

    for first, second in (((0, 0), (3, 3)), ((3, 0), (0, 2)), ((1, 1), (1, 1))):
        assert torch.equal(bias(before, first, second), bias(after, first, second))
