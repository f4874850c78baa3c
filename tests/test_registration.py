# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Tests that TorchGeo's own command line knows our classes, and the public names."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import kornia.augmentation as K
import pytest
import timm
import torch
import yaml
from torchgeo.main import main
from torchgeo.models import api
from torchgeo.tasks import utils

import torchgeo_cmid
from torchgeo_cmid import datamodules, registration, tasks

# Run where TORCHGEO_CMID_AUTOLOAD=0; `main` ends with status 0 where it knows cmid.
ASK_FOR_CMID = """
def status():
    try:
        main(['fit', '--model', 'cmid', '--print_config'])
    except SystemExit as end:
        return end.code
"""


def torchgeo(*arguments: str) -> 'subprocess.CompletedProcess[str]':
    """Run TorchGeo's console script as a user does."""
    return subprocess.run(
        [Path(sys.executable).with_name('torchgeo'), *arguments],
        env={key: os.environ[key] for key in os.environ if 'AUTOLOAD' not in key},
        capture_output=True,
        text=True,
    )


def without_autoload(program: str) -> 'subprocess.CompletedProcess[str]':
    """Run a program in an interpreter that has not started the hook."""
    return subprocess.run(
        [sys.executable, '-c', program],
        env={**os.environ, 'TORCHGEO_CMID_AUTOLOAD': '0'},
        capture_output=True,
        text=True,
    )


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what the command line prints before it ends."""
    with pytest.raises(SystemExit) as end:
        main(['fit', *arguments])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_console_script_knows_cmid() -> None:
    result = torchgeo('fit', '--model', 'cmid', '--print_config')
    assert result.returncode == 0, result.stderr
    model = yaml.safe_load(result.stdout)['model']
    assert model['class_path'].startswith('torchgeo_cmid.tasks.')
    assert model['init_args']['num_matches'] == 20
    assert model['init_args']['queue_size'] is None  # it follows from the run


def test_help_is_short() -> None:
    """All of torch's modules made it a thousand lines."""
    result = torchgeo('fit', '--model.help', 'cmid')
    assert result.returncode == 0, result.stderr
    assert '--model.mask_ratio' in result.stdout
    assert 'torchgeo_cmid.transforms.Views' in result.stdout
    assert len(result.stdout.splitlines()) < 200


def test_without_the_hook_cmid_is_unknown_until_it_is_imported() -> None:
    program = (
        'import contextlib, io, torchgeo.main\n'
        'from torchgeo.main import main\n'
        + ASK_FOR_CMID
        + 'print("before", status())\n'
        'import torchgeo_cmid\n'
        'with contextlib.redirect_stdout(io.StringIO()):\n'
        '    after = status()\n'
        'print("after", after)\n'
    )
    result = without_autoload(program)
    assert result.stdout.split() == ['before', '2', 'after', '0'], result.stderr


def test_without_the_hook_the_import_may_come_first() -> None:
    program = (
        'import torchgeo_cmid, sys\n'
        'assert "torch" not in sys.modules\n'
        'from torchgeo.main import main\n' + ASK_FOR_CMID + 'assert status() == 0\n'
    )
    result = without_autoload(program)
    assert result.returncode == 0, result.stderr
    assert 'class_path: torchgeo_cmid.tasks.' in result.stdout


@pytest.mark.parametrize('name', ['cmid', 'CMID'])
def test_task_is_found_by_its_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load(printed(capsys, '--model', name, '--print_config'))
    assert config['model']['class_path'].endswith(f'.{name}')


@pytest.mark.parametrize('name', datamodules.__all__)
def test_datamodule_is_found_by_its_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, '--model', 'cmid', '--data', name, '--print_config')
    class_path = yaml.safe_load(text)['data']['class_path']
    assert class_path.startswith('torchgeo_cmid.')
    assert class_path.endswith(f'.{name}')


@pytest.mark.parametrize('argument', inspect.signature(tasks.CMID).parameters)
def test_help_documents_every_argument(
    argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(capsys, '--model.help', 'cmid')
    # --model.size SIZE      Height and width ... (type: int, default: 224)
    match = re.search(rf'--model\.{argument} .*?(?=\n  --|\Z)', text, flags=re.DOTALL)
    assert match is not None, text
    description = match[0].split('(type:')[0].split(maxsplit=2)[2:]
    assert description, match[0]


def test_every_host_registers() -> None:
    """Registering again changes nothing."""
    before = api.get_weight, utils.load_state_dict, len(api.list_models())
    for host in registration.HOSTS:
        registration.register(host)
    assert before == (api.get_weight, utils.load_state_dict, len(api.list_models()))
    assert {'cmid_resnet50', 'cmid_swin_b'} < set(api.list_models())


@pytest.mark.parametrize('name', torchgeo_cmid.__all__)
def test_public_names(name: str) -> None:
    assert getattr(torchgeo_cmid, name).__name__ == name
    assert name in dir(torchgeo_cmid)


def test_unknown_name() -> None:
    with pytest.raises(
        AttributeError, match="'torchgeo_cmid' has no attribute 'SimCLR'"
    ):
        torchgeo_cmid.SimCLR  # noqa: B018


class TestUpstream:
    """Why functions of other packages are wrapped: each fails when upstream changes.

    Then the wrapper in registration.py can go.
    """

    def test_torchgeo_can_not_load_a_swin(self) -> None:
        model = timm.create_model('swin_tiny_patch4_window7_224', num_classes=0)
        original = utils.load_state_dict.__wrapped__  # type: ignore[attr-defined]
        with pytest.raises(AttributeError, match='out_features'):
            original(model, model.state_dict())

    def test_torchgeo_can_not_read_our_checkpoints(self, tmp_path: Path) -> None:
        state = {'student.backbone.conv1.weight': torch.zeros(1)}
        hyper_parameters = {'model': 'resnet50'}
        path = tmp_path / 'run.ckpt'
        torch.save({'state_dict': state, 'hyper_parameters': hyper_parameters}, path)
        original = utils.extract_backbone.__wrapped__  # type: ignore[attr-defined]
        assert original(path) == ('resnet50', {})
        assert utils.extract_backbone(str(path))[1].keys() == {'conv1.weight'}

    def test_torchgeo_names_no_near_weights(self) -> None:
        original = api.get_weight.__wrapped__  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=r'cmid_swin is not a valid WeightsEnum$'):
            original('cmid_swin')

    def test_kornia_refuses_one_mask_for_two_dates(self) -> None:
        augment = K.AugmentationSequential(
            K.VideoSequential(K.RandomCrop((16, 16))), data_keys=None, keepdim=True
        )
        image = torch.rand(3, 2, 1, 64, 64)
        batch = {'image': image, 'mask': image[:, 1]}  # the second date is the mask
        original = type(augment).__call__.__wrapped__
        with pytest.raises(ValueError, match='same number of frames'):
            original(augment, batch)
        output = augment(batch)
        assert output['mask'].shape == (3, 1, 16, 16)
        torch.testing.assert_close(output['mask'], output['image'][:, 1])

    def test_other_masks_are_left_alone(self) -> None:
        augment = K.AugmentationSequential(
            K.RandomCrop((16, 16)), data_keys=None, keepdim=True
        )
        image = torch.rand(3, 1, 64, 64)
        output = augment({'image': image, 'mask': image})
        torch.testing.assert_close(output['mask'], output['image'])
