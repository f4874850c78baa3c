# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The configs that need more machines than tests have: they parse, as written."""

import subprocess
from pathlib import Path

import pytest
import yaml
from torchgeo.main import main

SCALE = Path('experiments/scale')


def parse(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """Let TorchGeo's command parse a config, and return what it made of it."""
    with pytest.raises(SystemExit) as end:
        main(['fit', *arguments, '--print_config'])
    assert end.value.code == 0
    content: dict[str, object] = yaml.safe_load(capsys.readouterr().out)
    return content


@pytest.mark.parametrize('name', ['one_gpu', 'one_node', 'many_nodes'])
def test_scale(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each lies on top of another config, and changes the trainer alone."""
    base = '--config=experiments/raster_folder.yaml'
    path = SCALE / f'{name}.yaml'
    plain = parse(capsys, base)
    content = parse(capsys, base, f'--config={path}')
    assert content['model'] == plain['model']
    assert content['data'] == plain['data']
    trainer = content['trainer']
    assert isinstance(trainer, dict)
    overlay = yaml.safe_load(path.read_text())['trainer']
    for key in overlay.keys() - {'plugins'}:
        assert trainer[key] == overlay[key]


def test_slurm_script(capsys: pytest.CaptureFixture[str]) -> None:
    """Bash can read it, and its numbers are the config's."""
    script = SCALE / 'many_nodes.slurm'
    subprocess.run(['bash', '-n', script], check=True)
    text = script.read_text()
    trainer = yaml.safe_load((SCALE / 'many_nodes.yaml').read_text())['trainer']
    assert f'--nodes={trainer["num_nodes"]}\n' in text
    assert f'--ntasks-per-node={trainer["devices"]}\n' in text
    assert f'--gpus-per-node={trainer["devices"]}\n' in text
    version = '--trainer.logger.init_args.version=job_1'
    base = '--config=experiments/raster_folder.yaml'
    content = parse(capsys, base, f'--config={SCALE}/many_nodes.yaml', version)
    assert 'version: job_1' in yaml.safe_dump(content)


def test_ssl_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    """The protocol's numbers stand in what the command makes of the config."""
    content = parse(capsys, '--config=experiments/ssl_benchmark/eurosat.yaml')
    text = yaml.safe_dump(content)
    for line in ('max_epochs: 60', 'batch_size: 128', 'size: 224', 'in_channels: 13'):
        assert line in text
    assert content['seed_everything'] == 0
