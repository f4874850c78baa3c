# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A checkpoint is data: nothing that it names is imported, and what is typed counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torchgeo.main import main

from tests.data.geotiff.data import generate
from tests.runs import test_interruption


@pytest.fixture(scope='module')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('scenes')
    generate(folder, bands=3, size=128)
    return folder


def command(scenes: Path, folder: Path, *more: str) -> list[str]:
    arguments = test_interruption.TestFiles().arguments(scenes, folder)
    return [*arguments, '--data.length=4', *more]


@pytest.fixture(scope='module')
def checkpoint(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('run')
    main(command(scenes, folder, '--model.lr=0.001'))
    return next(folder.rglob('*.ckpt'))


def resume(scenes: Path, folder: Path, checkpoint: Path, *more: str) -> dict[str, Any]:
    """Go on for an epoch, and read what that leaves."""
    arguments = command(scenes, folder, f'--ckpt_path={checkpoint}', *more)
    main([*arguments, '--trainer.max_epochs=2'])
    content: dict[str, Any] = torch.load(
        next(folder.rglob('*.ckpt')), weights_only=True
    )
    return content


def changed(checkpoint: Path, folder: Path, **arguments: Any) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    content['hyper_parameters'] |= arguments
    torch.save(content, folder / 'changed.ckpt')
    return folder / 'changed.ckpt'


def test_the_reader_is_where_it_was() -> None:
    """Lightning's private method, which registration.py wraps."""
    assert hasattr(LightningCLI._parse_ckpt_path, 'wrapped_by_torchgeo_cmid')
    assert hasattr(LightningCLI.parse_arguments, 'wrapped_by_torchgeo_cmid')


def test_class_path_is_not_imported(
    scenes: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'evil.py').write_text('open("trap", "w").write("ran")\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    bad = changed(checkpoint, tmp_path, _class_path='evil.X')
    resume(scenes, tmp_path / 'run', bad)
    assert not (tmp_path / 'trap').exists()


@pytest.mark.parametrize(
    'arguments',
    [
        {'augmentations': {'class_path': 'this.Zen'}},
        {'temperature': {'class_path': 'this.Zen'}},
        {'loss_weights': [1, {'class_path': 'this.Zen'}]},
        {'weights': 'https://somewhere/weights.pth'},
        {'unheard_of': 1},
    ],
)
def test_other_values_are_refused(
    arguments: dict[str, Any], scenes: Path, checkpoint: Path, tmp_path: Path
) -> None:
    (name,) = arguments
    with pytest.raises(ValueError, match=rf'changed\.ckpt.* argument {name}='):
        resume(scenes, tmp_path / 'run', changed(checkpoint, tmp_path, **arguments))


def test_what_is_typed_counts(scenes: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Regression: it was dropped without a word."""
    content = resume(
        scenes,
        tmp_path,
        checkpoint,
        '--model.lr=0.5',
        '--model.loss_weights=[0,1,1]',
        '--model.momentum=0.9',
    )
    arguments = content['hyper_parameters']
    assert arguments['lr'] == 0.5
    assert list(arguments['loss_weights']) == [0, 1, 1]
    assert arguments['momentum'] == 0.9
    groups = content['optimizer_states'][0]['param_groups']
    assert all(group['initial_lr'] == 0.5 for group in groups)
    assert content['lr_schedulers'][0]['base_lrs'] == [0.5] * len(groups)


def test_what_is_not_typed_is_the_checkpoints(
    scenes: Path, checkpoint: Path, tmp_path: Path
) -> None:
    other = changed(checkpoint, tmp_path, temperature=0.3)
    content = resume(scenes, tmp_path / 'run', other)
    assert content['hyper_parameters']['temperature'] == 0.3
    assert content['hyper_parameters']['lr'] == 0.001


@pytest.mark.parametrize(
    'argument', ['model=resnet18', 'queue_size=8', 'optimizer=sgd', 'weight_decay=0.5']
)
def test_cannot_go_on_with(
    argument: str, scenes: Path, checkpoint: Path, tmp_path: Path
) -> None:
    name = argument.partition('=')[0]
    with pytest.raises(ValueError, match=rf'^{name}=\S+ is typed, but .*\.ckpt'):
        resume(scenes, tmp_path, checkpoint, f'--model.{argument}')
