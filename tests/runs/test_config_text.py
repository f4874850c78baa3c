# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Aliases that unfold without end, and those that do not."""

from pathlib import Path

import pytest
import yaml
from torchgeo.main import main

from torchgeo_cmid.runs.config_text import count_values, guarded


def bomb(levels: int) -> str:
    """Ten values, repeated ten times at each level."""
    lines = ['a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]']
    for level in range(1, levels):
        repeated = ', '.join([f'*a{level - 1}'] * 10)
        lines.append(f'a{level}: &a{level} [{repeated}]')
    return '\n'.join(lines) + '\n'


def test_counts_what_aliases_stand_for() -> None:
    assert count_values({'a': [1, 2], 'b': {'c': None}}) == 6
    assert count_values(yaml.safe_load(bomb(2))) == 1 + 11 + (1 + 10 * 11)


def test_ordinary_aliases_are_read() -> None:
    assert guarded(yaml.safe_load)(bomb(2)) == yaml.safe_load(bomb(2))


@pytest.mark.parametrize('text', [bomb(7), bomb(60), 'a: &a [*a]', 'a: &a {b: *a}'])
def test_others_are_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match='alias'):
        guarded(yaml.safe_load)(text)


@pytest.mark.parametrize('place', ['top', 'nested'])
def test_the_stock_command(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is named, wherever it is read; seven levels took 40 s before."""
    inner = tmp_path / 'inner.yaml'
    inner.write_text(bomb(9))
    outer = inner
    if place == 'nested':
        outer = tmp_path / 'outer.yaml'
        outer.write_text('trainer: inner.yaml\n')
    with pytest.raises(SystemExit):
        main(['fit', '--config', str(outer)])
    error = capsys.readouterr().err
    assert 'aliases unfold' in error
    assert 'inner.yaml' in error
