# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Where a pre-training can start from."""

import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchgeo.models import ResNet18_Weights, ResNet50_Weights, Swin_V2_T_Weights
from torchgeo.tasks import Classification
from torchvision.models._api import WeightsEnum

from tests.published import make_backbone, make_full_state
from torchgeo_cmid.models import CMIDResNet50_Weights, export_backbone
from torchgeo_cmid.models.loading import drop_wrappers
from torchgeo_cmid.tasks import CMID


def small(model: str = 'resnet50', **kwargs: Any) -> CMID:
    """A task with small heads."""
    defaults = {'size': 64, 'hidden_dim': 16, 'num_prototypes': 8, 'queue_size': 4}
    return CMID(model=model, **defaults | kwargs)


def assert_starts_from(task: CMID, expected: dict[str, Tensor]) -> None:
    """Student and teacher have these tensors."""
    for network in (task.student, task.teacher):
        state = network.backbone.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.mark.parametrize('kind', ['name', 'enum', 'file'])
def test_published_backbone(kind: str, published: Path) -> None:
    weights: Any = {
        'name': 'cmid_resnet50',
        'enum': CMIDResNet50_Weights.MILLIONAID,
        'file': str(published / 'cmid_resnet50_millionaid.pth'),
    }[kind]
    task = small(weights=weights)
    assert_starts_from(task, make_backbone('cmid_resnet50'))


def test_published_swin(published: Path) -> None:
    task = small('swin_base_patch4_window7_224', size=224, weights='cmid_swin_b')
    expected = make_backbone('cmid_swin_b')['norm3.weight']
    assert torch.equal(task.student.backbone.norm.weight, expected)  # type: ignore[union-attr]


def test_published_full_state(tmp_path: Path) -> None:
    """Heads, queue and centre are taken over, too."""
    state = make_full_state('cmid_resnet50')
    torch.save({'model': state}, tmp_path / 'full.pth')
    task = CMID(model='resnet50', size=64, weights=str(tmp_path / 'full.pth'))
    assert torch.equal(task.contrastive.queue, state['queue'])
    assert torch.equal(task.distillation.center, state['class_loss.center'].flatten())
    own = task.student.backbone.state_dict()['conv1.weight']
    assert torch.equal(own, state['online_encoder.model.conv1.weight'])
    own = task.teacher.backbone.state_dict()['conv1.weight']
    assert torch.equal(own, state['branch_encoder.conv1.weight'])


def test_full_state_with_other_heads(tmp_path: Path) -> None:
    torch.save({'model': make_full_state('cmid_resnet50')}, tmp_path / 'full.pth')
    with pytest.raises(ValueError, match='does not fit'):
        small(weights=str(tmp_path / 'full.pth'))


def test_timms_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """True asks timm for them."""
    asked = []
    create = timm.create_model

    def create_model(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        asked.append(pretrained)
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, 'create_model', create_model)
    small('resnet18', weights=True)
    assert asked == [True]  # the teacher is a copy of the student


@pytest.mark.parametrize('suffix', ['ckpt', 'safetensors', 'pth'])
def test_files_of_ours(suffix: str, tmp_path: Path) -> None:
    first = small('resnet18')
    path = tmp_path / f'file.{suffix}'
    checkpoint = {
        'state_dict': first.state_dict(),
        'hyper_parameters': {'model': 'resnet18', 'in_channels': 3, 'size': 64},
    }
    torch.save(checkpoint, tmp_path / 'file.ckpt')
    if suffix == 'safetensors':
        export_backbone(tmp_path / 'file.ckpt', path)
    elif suffix == 'pth':
        torch.save(first.student.backbone.state_dict(), path)
    second = small('resnet18', weights=str(path))
    assert_starts_from(second, first.student.backbone.state_dict())


class TestTorchGeoWeights:
    def serve(
        self, monkeypatch: pytest.MonkeyPatch, weight: WeightsEnum, state: Any
    ) -> None:
        monkeypatch.setattr(type(weight), 'get_state_dict', lambda *a, **k: state)

    def test_named_as_timms(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a classifier of another number of classes, which is left out."""
        weight = ResNet18_Weights.SENTINEL2_ALL_MOCO
        state = timm.create_model('resnet18', in_chans=13, num_classes=62).state_dict()
        self.serve(monkeypatch, weight, state)
        task = small('resnet18', in_channels=13, weights=str(weight))
        expected = {k: v for k, v in state.items() if not k.startswith('fc.')}
        assert_starts_from(task, expected)

    def test_named_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weight = Swin_V2_T_Weights.SENTINEL2_SI_RGB_SATLAS
        self.serve(monkeypatch, weight, {'features.0.0.weight': torch.zeros(1)})
        with pytest.raises(ValueError, match='not even named as those of the'):
            small('resnet18', weights=weight)

    def test_other_bands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        weight = ResNet50_Weights.SENTINEL2_ALL_MOCO
        state = timm.create_model('resnet50', in_chans=13, num_classes=0).state_dict()
        self.serve(monkeypatch, weight, state)
        with pytest.raises(ValueError, match='stem for 13 bands, in_channels is 6'):
            small(in_channels=6, weights=weight)

    def test_unknown(self) -> None:
        with pytest.raises(ValueError, match=r'neither a file nor.*did you mean cmid_'):
            small(weights='cmid_resnet_50')


def test_more_bands(published: Path) -> None:
    """RGB weights start a pre-training on Sentinel-2."""
    task = small(in_channels=13, weights='cmid_resnet50')
    stem = task.student.backbone.state_dict()['conv1.weight']
    expected = make_backbone('cmid_resnet50')['conv1.weight'][:, 0] * 3 / 13
    torch.testing.assert_close(stem[:, 3], expected)


def test_registered_name_as_model(published: Path) -> None:
    """`cmid_resnet50` is a timm model as any other."""
    task = small('cmid_resnet50', weights='cmid_resnet50')
    assert_starts_from(task, make_backbone('cmid_resnet50'))


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: it was read once for a full state, and once for a backbone."""
    source = small('test_resnet')
    torch.save(source.student.backbone.state_dict(), tmp_path / 'backbone.pth')
    read: list[Any] = []
    load = torch.load

    def counted(path: Any, *args: Any, **kwargs: Any) -> Any:
        read.append(path)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, 'load', counted)
    task = small('test_resnet', weights=str(tmp_path / 'backbone.pth'))
    assert len(read) == 1
    assert_starts_from(task, source.student.backbone.state_dict())


def test_a_compiled_backbone_goes_on_as_it_is(tmp_path: Path) -> None:
    """Regression: its names fitted nothing, which was found out at the export."""
    source = small('test_resnet')
    expected = source.student.backbone.state_dict()
    source.student.backbone = torch.compile(source.student.backbone, backend='eager')
    content = {
        'state_dict': source.state_dict(),
        'hyper_parameters': {'model': 'test_resnet', 'in_channels': 3, 'size': 64},
    }
    assert any('_orig_mod' in name for name in content['state_dict'])
    torch.save(content, tmp_path / 'run.ckpt')
    export_backbone(tmp_path / 'run.ckpt', tmp_path / 'out.safetensors')
    wrapped = {f'module.{name}': value for name, value in expected.items()}
    torch.save(wrapped, tmp_path / 'ddp.pth')
    for name in ('run.ckpt', 'out.safetensors', 'ddp.pth'):
        assert_starts_from(small('test_resnet', weights=str(tmp_path / name)), expected)


@pytest.mark.parametrize(
    'prefix',
    ['module._orig_mod.', '_orig_mod.module.', '_forward_module.', 'module.module.'],
)
@pytest.mark.parametrize('within', ['', 'student.', 'student.backbone.'])
def test_wrappers_within_wrappers(prefix: str, within: str) -> None:
    """Regression: an export took the teacher where the student was wrapped twice."""
    name = f'{within}layer1.module.weight'
    assert [*drop_wrappers({f'{within}{prefix}layer1.module.weight': 0})] == [name]


@pytest.mark.parametrize('before', [False, True])
@pytest.mark.parametrize('after', [False, True])
def test_resuming_compiled_or_not(before: bool, after: bool) -> None:
    """A checkpoint has the names of the networks as such, and fits either."""

    def make(compiled: bool) -> CMID:
        task = small('test_resnet')
        if compiled:
            backbone = torch.compile(task.student.backbone, backend='eager')
            task.student.backbone = backbone  # type: ignore[assignment]
        return task

    first, second = make(before), make(after)
    progress = {'epoch_loop.batch_progress': {'current': {'ready': 0}}}
    checkpoint = {'state_dict': first.state_dict(), 'epoch': 0}
    first.on_save_checkpoint(checkpoint)
    assert not any('_orig_mod' in name for name in checkpoint['state_dict'])
    checkpoint |= {'loops': {'fit_loop': progress}}
    second.on_load_checkpoint(checkpoint)
    second.load_state_dict(checkpoint['state_dict'])
    values = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in values)


@pytest.mark.parametrize(
    ('model', 'size'),
    [('test_vit', 160), ('test_convnext', 64), ('swin_tiny_patch4_window7_224', 224)],
)
def test_families_in_stock_classification(
    model: str, size: int, tmp_path: Path
) -> None:
    """Regression: TorchGeo looks for a classifier where ResNets have it."""
    source = small(model, size=size)
    content = {
        'state_dict': source.state_dict(),
        'hyper_parameters': {'model': model, 'in_channels': 3, 'size': size},
    }
    torch.save(content, tmp_path / 'run.ckpt')
    task = Classification(
        model=model, weights=str(tmp_path / 'run.ckpt'), num_classes=3
    )
    state = task.model.state_dict()
    for name, tensor in source.student.backbone.state_dict().items():
        assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize('kind', ['pipe', 'link to a pipe', 'folder', 'broken link'])
def test_no_regular_file(kind: str, tmp_path: Path) -> None:
    """Regression: a pipe was waited for, for ever."""
    path = tmp_path / 'weights.pth'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'broken link':
        path.symlink_to(tmp_path / 'nowhere')
    else:
        os.mkfifo(tmp_path / 'pipe')
        path.symlink_to(tmp_path / 'pipe')
        if kind == 'pipe':
            path = tmp_path / 'pipe'
    for call in (
        lambda: small('resnet18', weights=str(path)),
        lambda: Classification(model='resnet18', weights=str(path), num_classes=3),
        lambda: export_backbone(path, tmp_path / 'out.safetensors'),
    ):
        with pytest.raises(ValueError, match=path.name):
            call()
