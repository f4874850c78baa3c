# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""torchgeo-bench judges a checkpoint, where it is installed: no extra has it."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.data.geobench.data import create
from torchgeo_cmid.models.normalization import Pixels

pytest.importorskip('torchgeo_bench')
FOLDER = Path(__file__).parents[2] / 'experiments' / 'torchgeo_bench'
sys.path.append(str(FOLDER))
cmid_bench = __import__('cmid_bench')


def bands() -> list[object]:
    from torchgeo_bench.datasets.m_eurosat import MEurosat

    return MEurosat().select_band_specs(['red', 'green', 'blue'])


def checkpoint(folder: Path, unit: float | None) -> str:
    """A ResNet-18 that was trained on pixels of some unit."""
    import timm

    torch.manual_seed(0)
    backbone = timm.create_model('resnet18', num_classes=0)
    state = {f'student.backbone.{k}': v for k, v in backbone.state_dict().items()}
    pixels = Pixels((1000.0, 900.0, 800.0), (500.0, 400.0, 300.0), unit)
    path = folder / 'run.ckpt'
    told = {'pixels': pixels.to_state(), 'hyper_parameters': {'model': 'resnet18'}}
    torch.save({'state_dict': state, **told}, path)
    return str(path)


@pytest.mark.parametrize('unit', [1e4, 255.0, None])
def test_pixels(tmp_path: Path, unit: float | None) -> None:
    """Of one unit the backbone's own statistics hold, else those of the data set."""
    model = cmid_bench.CMIDBench(
        bands(), backbone='resnet18', weights=checkpoint(tmp_path, unit)
    )
    raw = torch.full((1, 3, 64, 64), 2000.0)
    if unit == 1e4:
        expected = [2.0, 2.75, 4.0]
    else:
        expected = [(2000 - band.mean) / band.std for band in bands()]
    got = model.normalize_inputs(raw)[0, :, 0, 0]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_command(tmp_path: Path) -> None:
    """The command of the file's docstring ends with figures of 5-NN and probe."""
    create(tmp_path / 'data')
    path = checkpoint(tmp_path, 1e4)
    command = [
        *(str(Path(sys.executable).with_name('torchgeo-bench')), 'run'),
        *('--config-dir', str(FOLDER / 'conf'), 'model=cmid'),
        *(f'model.weights={path}', 'output=cmid.csv'),
        *('dataset.names=[m-eurosat]', 'device=cpu', 'dataset.num_workers=0'),
        *('dataset.image_size=64', 'eval.bootstrap=5', 'eval.c_range=[-2,1,3]'),
    ]
    environment = os.environ | {'PYTHONPATH': str(FOLDER)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(csv.DictReader((tmp_path / 'cmid.csv').open()))
    figures = {row['method']: float(row['metric_value']) for row in rows}
    assert min(figures.values()) > 0.3, figures  # chance is 0.1
