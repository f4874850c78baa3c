# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""``validate`` and ``test`` say what a backbone is worth, or why they cannot."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torchgeo.datamodules import EuroSATDataModule, UCMercedDataModule
from torchgeo.datasets import UCMerced
from torchgeo.main import main

from tests.data.geotiff.data import write_scene
from tests.data.transfer.data import GENERATE
from tests.tasks.tiny import TINY
from tests.trainers import quiet_trainer
from torchgeo_cmid.callbacks.evaluation_table import EvaluationTable
from torchgeo_cmid.callbacks.figures import STATISTICS
from torchgeo_cmid.datamodules import RasterFolderDataModule
from torchgeo_cmid.datamodules.parts import Parts
from torchgeo_cmid.tasks import CMID

MODEL = ['--model=cmid', '--model.model=test_resnet', '--model.warmup_epochs=1']
MODEL += [f'--model.{name}={value}' for name, value in TINY.items()]
TRAINER = ['accelerator=cpu', 'logger=false', 'enable_progress_bar=false']


def command(name: str, data: str, root: Path, bands: int, *more: str) -> None:
    """Run a command on a data module of TorchGeo, in the current folder."""
    main(
        [
            name,
            *(f'--trainer.{flag}' for flag in TRAINER),
            *MODEL,
            f'--model.in_channels={bands}',
            f'--data={data}',
            '--data.batch_size=2',
            '--data.num_workers=0',
            f'--data.dict_kwargs.root={root}',
            *more,
        ]
    )


def table(name: str) -> dict[str, dict[str, float]]:
    """What a command has written: CSV and JSON say the same."""
    folder = Path('evaluation', name)
    content: dict[str, dict[str, float]] = json.loads(
        (folder / 'table.json').read_text()
    )
    with (folder / 'table.csv').open() as file:
        rows = {row.pop('network'): row for row in csv.DictReader(file)}
    assert rows.keys() == content.keys()
    for network, figures in content.items():
        kept = {key: float(value) for key, value in rows[network].items() if value}
        assert kept == figures
    return content


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def task(**kwargs: Any) -> CMID:
    return CMID(model='test_resnet', **(TINY | {'in_channels': 13} | kwargs))


@pytest.fixture
def eurosat(tmp_path: Path) -> EuroSATDataModule:
    GENERATE['eurosat'](tmp_path / 'eurosat')
    return EuroSATDataModule(4, root=tmp_path / 'eurosat')


LABELLED = {'knn', 'knn5', 'knn5_standardised', 'linear', 'few_shot_1'}
FREE = {'correspondence', 'effective_rank', 'mean_cosine', 'normalised_std'}
DENSE = {'dense_knn_miou', 'cell_probe_miou'}

#: Data module -> bands, arguments of its files, more of the command, figures.
STOCK: dict[str, tuple[int, dict[str, int], list[str], set[str]]] = {
    'EuroSAT': (13, {}, [], LABELLED),
    'RESISC45': (3, {'number': 4}, [], LABELLED),
    'UCMerced': (3, {'number': 4}, [], LABELLED),
    'Potsdam2D': (
        4,
        {'size': 256},
        ['--data.patch_size=256', '--model.size=128'],
        DENSE,
    ),
    'Vaihingen2D': (
        3,
        {'size': 256},
        ['--data.patch_size=256', '--model.size=128'],
        DENSE,
    ),
    'LEVIRCD': (3, {'size': 256}, ['--model.size=128'], DENSE),
    'OSCD': (13, {'size': 128}, ['--model.size=128'], DENSE),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', STOCK)
@pytest.mark.parametrize('stage', ['validate', 'test'])
def test_stock(
    name: str, stage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table for each labelled data module, and nothing is written over."""
    bands, files, more, expected = STOCK[name]
    GENERATE[name.lower().removesuffix('2d')](tmp_path / 'data', **files)
    for _ in range(2):
        command(stage, f'{name}DataModule', tmp_path / 'data', bands, *more)
    tables = [table(f'{stage}-{number}') for number in range(2)]
    assert [*tables[0]] == [STATISTICS, 'random', 'student', 'teacher']
    for figures in tables[0].values():
        assert figures.keys() >= expected | {'effective_rank'}
    if name != 'OSCD':  # its data set crops at random
        assert tables[0] == tables[1]
    said = capsys.readouterr().out
    assert f'frozen features on {name}DataModule, {stage}' in said
    assert f'evaluation/{stage}-1/table.csv' in said


def test_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene(tmp_path / 'scenes' / 'a.tif', bands=13, size=192, seed=0)
    datamodule = RasterFolderDataModule(
        str(tmp_path / 'scenes'), patch_size=64, batch_size=2, length=8, val_split=0.5
    )
    trainer = quiet_trainer(tmp_path)
    trainer.validate(task(), datamodule)
    figures = table('validate-0')['student']
    assert figures.keys() >= FREE
    assert not figures.keys() & LABELLED
    assert 'correspondence' in capsys.readouterr().out


def test_figures_are_logged(eurosat: EuroSATDataModule, tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    trainer.validate(task(), eurosat)
    logged = trainer.callback_metrics
    for name, value in table('validate-0')['student'].items():
        assert float(logged[f'val_{name}']) == pytest.approx(value)


def test_known_answer(eurosat: EuroSATDataModule) -> None:
    """A student that is the random backbone has its figures, and the teacher too."""
    torch.manual_seed(0)
    made = task()
    made.teacher.load_state_dict(made.student.state_dict(), strict=False)
    parts, random_state = Parts(eurosat), torch.get_rng_state()
    found = EvaluationTable()._measure(made, parts, 'val')
    assert found['student'] == found['teacher']
    assert found['student'] != found[STATISTICS]
    assert torch.equal(random_state, torch.get_rng_state())  # as if it had not been


class Watch(Callback):
    """Keeps the pixels of a validation."""

    def __init__(self) -> None:
        """Initialize a new Watch instance."""
        self.images: list[torch.Tensor] = []

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, *args: Any
    ) -> None:
        self.images.append(batch['image'])


def test_pixels(eurosat: EuroSATDataModule, tmp_path: Path) -> None:
    """They are those of a validation; the data module is left as it was."""
    watch = Watch()
    trainer = quiet_trainer(tmp_path, callbacks=[watch])
    trainer.validate(task(), eurosat)
    before = dict(vars(eurosat))
    parts = Parts(eurosat)
    cpu = torch.device('cpu')
    found = [batch['image'] for batch, _ in parts.batches('val', cpu)]
    torch.testing.assert_close(torch.cat(found), torch.cat(watch.images))
    assert vars(eurosat) == before
    train = [batch['label'] for batch, _ in parts.batches('train', cpu)]
    dataset: Any = parts.datamodule.train_dataset
    assert torch.cat(train).tolist() == [item['label'] for item in dataset]


def test_no_such_part(tmp_path: Path) -> None:
    write_scene(tmp_path / 'scenes' / 'a.tif', bands=13, size=192, seed=0)
    datamodule = RasterFolderDataModule(
        str(tmp_path / 'scenes'), patch_size=64, batch_size=2, length=8, val_split=0
    )
    with pytest.raises(ValueError, match='RasterFolderDataModule gave no image to val'):
        quiet_trainer(tmp_path).validate(task(), datamodule)


def test_other_bands(eurosat: EuroSATDataModule, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'13, 64, 64\), but the backbone takes 4'):
        quiet_trainer(tmp_path).test(task(in_channels=4), eurosat)


def test_one_class(tmp_path: Path) -> None:
    GENERATE['ucmerced'](tmp_path / 'data', number=6)
    shutil.rmtree(tmp_path / 'data' / UCMerced.base_dir / 'class01')
    datamodule = UCMercedDataModule(4, root=tmp_path / 'data')
    with pytest.raises(ValueError, match='all of class'):
        quiet_trainer(tmp_path).test(task(in_channels=3), datamodule)


def test_most_images() -> None:
    with pytest.raises(ValueError, match='max_images=0'):
        EvaluationTable(max_images=0)
