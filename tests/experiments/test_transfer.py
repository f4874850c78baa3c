# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Each config of experiments/transfer, run by TorchGeo's own command."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torchgeo.tasks
import yaml
from torch import Tensor, nn
from torchgeo.main import main
from torchgeo.models import get_weight

import torchgeo_cmid.tasks
from tests.data.transfer.data import GENERATE

pytestmark = pytest.mark.slow

EXPERIMENTS = Path('experiments/transfer')
BACKBONES = ('cmid_resnet50', 'cmid_swin_b')
#: Data sets whose stock data modules give 0..1, and those that standardise themselves.
UNIT_RANGE = ('ucmerced', 'potsdam', 'vaihingen', 'levircd', 'vhr10')
STANDARDISED = ('eurosat', 'resisc45', 'oscd')
MODELS = {
    'eurosat': (None,),
    'ucmerced': (None,),
    'resisc45': (None,),
    'potsdam': ('unet', 'upernet'),
    'vaihingen': ('unet', 'upernet'),
    'levircd': ('fcsiamdiff', 'fcsiamconc', 'unet', 'upernet'),
    'oscd': ('fcsiamdiff', 'unet', 'upernet'),
    'vhr10': ('faster-rcnn',),
}
CELLS = [
    pytest.param(data, model, backbone, id=f'{data}-{model}-{backbone}')
    for data, models in MODELS.items()
    for model in models
    for backbone in BACKBONES
]
SMALL = {
    'accelerator': 'cpu',
    'max_epochs': 1,
    'enable_progress_bar': False,
    'enable_model_summary': False,
    'enable_checkpointing': False,
    'logger': False,
}


def config(data: str) -> dict[str, Any]:
    """Read a config."""
    content: dict[str, Any] = yaml.safe_load((EXPERIMENTS / f'{data}.yaml').read_text())
    return content


def choose(data: str, model: str | None, backbone: str) -> dict[str, str]:
    """Give the arguments of the task that choose a cell of the table."""
    if model is None:
        return {'model': backbone, 'weights': backbone}
    return {'model': model, 'backbone': backbone, 'weights': backbone}


def backbone_of(task: Any) -> nn.Module:
    """Find the module that the weights were loaded into."""
    model = task.model
    if isinstance(task, torchgeo_cmid.tasks.CMIDObjectDetection):
        return model.backbone.encoder  # type: ignore[no-any-return]
    return getattr(model, 'encoder', model)  # type: ignore[no-any-return]


@functools.cache
def folder(tmp: Path, data: str) -> Path:
    """Generate a data set once."""
    GENERATE[data](tmp / data)
    return tmp / data


@pytest.fixture(scope='session')
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp('data')


@pytest.mark.parametrize(('data', 'model', 'backbone'), CELLS)
def test_fit_and_test(
    data: str,
    model: str | None,
    backbone: str,
    data_root: Path,
    tmp_path: Path,
    published: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cell of the table runs, and its first convolution gets a sane range."""
    ranges = watch_first_convolution(monkeypatch)
    content = config(data)
    content['trainer'] = {**SMALL, 'default_root_dir': str(tmp_path)}
    content['model']['init_args'] |= choose(data, model, backbone)
    options = content['data']['init_args'] | content['data']['dict_kwargs']
    small = {'batch_size': 2, 'num_workers': 0, 'patch_size': 64}
    small |= {'root': str(folder(data_root, data))}
    small |= {'download': False} if 'download' in options else {}
    for group in ('init_args', 'dict_kwargs'):
        names = content['data'][group].keys() & small.keys()
        content['data'][group] |= {name: small[name] for name in names}
    if 'download' in options:  # TorchGeo compares the files with the real ones
        content['data']['dict_kwargs']['checksum'] = False
    path = tmp_path / 'config.yaml'
    path.write_text(yaml.safe_dump(content))
    with caplog.at_level('INFO'):
        main(['fit', f'--config={path}'])
        main(['test', f'--config={path}'])
    messages = [record.getMessage() for record in caplog.records]
    said = [message for message in messages if message.startswith('pixels of ')]
    assert len(said) == 2, said  # each command decides once
    assert ranges
    if data in STANDARDISED:
        assert min(low for low, _ in ranges) < 0  # as the module gives them
        assert all('stays' in m or 'already' in m for m in said), said
        return
    assert all('by the mean and std of the weights' in message for message in said)
    for low, high in ranges:  # random pixels: (0 - mean) / std and (1 - mean) / std
        assert -2.67 < low < -2.2, ranges
        assert 4.4 < high < 4.95, ranges


def watch_first_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[float, float]]:
    """Record the range of what the stem's convolution is given, in every step."""
    ranges: list[tuple[float, float]] = []
    forward = nn.Conv2d.forward

    def watched(self: nn.Conv2d, x: Tensor) -> Tensor:
        shape = self.out_channels, self.kernel_size, self.stride
        if shape in ((64, (7, 7), (2, 2)), (128, (4, 4), (4, 4))):  # of ResNet, of Swin
            ranges.append((float(x.min()), float(x.max())))
        return forward(self, x)

    monkeypatch.setattr(nn.Conv2d, 'forward', watched)
    return ranges


@pytest.mark.parametrize(('data', 'model', 'backbone'), CELLS)
def test_tensors_equal_the_weights(
    data: str, model: str | None, backbone: str, published: Path
) -> None:
    """Every tensor of the backbone is the weights', bar an explicit list."""
    content = config(data)['model']
    name = content['class_path']
    tasks = torchgeo.tasks if hasattr(torchgeo.tasks, name) else torchgeo_cmid.tasks
    task = getattr(tasks, name)(**content['init_args'] | choose(data, model, backbone))
    state = backbone_of(task).state_dict()
    weights = get_weight(backbone).get_state_dict()

    excused = set()
    stacked = name == 'ChangeDetection' and model in ('unet', 'upernet')
    if content['init_args']['in_channels'] != 3 or stacked:  # a stem for other bands
        excused |= {'conv1.weight', 'patch_embed.proj.weight'} & weights.keys()
    if model is not None:  # dense tasks have no final norm
        excused |= {'norm.weight', 'norm.bias'} & weights.keys()
    if data == 'vhr10':  # frozen batch norm does not count
        excused |= {name for name in weights if name.endswith('num_batches_tracked')}

    equal = {
        name
        for name, tensor in weights.items()
        if name in state and torch.equal(state[name], tensor)
    }
    assert weights.keys() - equal == excused
    heads = {'fc.weight', 'fc.bias', 'head.fc.weight', 'head.fc.bias'}
    assert state.keys() - weights.keys() <= heads
    counts = {'cmid_resnet50': 318, 'cmid_swin_b': 327}
    assert len(equal) == counts[backbone] - len(excused)


def test_stock_resnet50(published: Path) -> None:
    """TorchGeo's own name takes the ResNet's weights as well."""
    task = torchgeo.tasks.Classification(
        model='resnet50', weights='cmid_resnet50', num_classes=10
    )
    weights = get_weight('cmid_resnet50').get_state_dict()
    state = task.model.state_dict()
    assert state.keys() - weights.keys() == {'fc.weight', 'fc.bias'}
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_ranges_are_complete() -> None:
    names = {path.stem for path in EXPERIMENTS.glob('*.yaml')}
    assert names == {*UNIT_RANGE, *STANDARDISED} == GENERATE.keys()
