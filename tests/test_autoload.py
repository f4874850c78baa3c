# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Tests the import hook: on made-up hosts in this process, and as Python starts it."""

import importlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from torchgeo_cmid import autoload

ROOT = Path(__file__).parents[1]
SOURCES = {
    'inner_host': 'done = True',
    'outer_host': 'import inner_host; done = True',
    # what `import torchgeo_cmid` does, in the middle of a host
    'eager_host': 'from torchgeo_cmid import autoload; autoload.install(); done = True',
    'broken_host': '1 / 0',
}


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Make up hosts, and record in which order we register with them."""
    recorded: list[str] = []

    def register(host: str) -> None:
        assert sys.modules[host].done, f'{host} has not run to its end'
        recorded.append(host)

    for name, source in SOURCES.items():
        (tmp_path / f'{name}.py').write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(autoload, 'HOSTS', {**SOURCES, 'missing_host': ''})
    monkeypatch.setattr(autoload, 'register', register)
    others = [finder for finder in sys.meta_path if finder is not autoload.FINDER]
    monkeypatch.setattr(sys, 'meta_path', others)
    monkeypatch.setattr(autoload, 'FINDER', autoload.HostFinder())
    yield recorded
    for name in SOURCES:
        sys.modules.pop(name, None)


def test_registers_after_the_host_has_run(events: list[str]) -> None:
    autoload.install()
    assert events == []
    importlib.import_module('inner_host')
    assert events == ['inner_host']


def test_registers_at_once_with_a_host_that_has_run(events: list[str]) -> None:
    importlib.import_module('inner_host')
    assert events == []
    autoload.install()
    assert events == ['inner_host']


def test_nested_hosts_register_as_each_ends(events: list[str]) -> None:
    autoload.install()
    importlib.import_module('outer_host')
    assert events == ['inner_host', 'outer_host']


def test_a_half_initialised_host_is_left_alone(events: list[str]) -> None:
    autoload.install()
    importlib.import_module('eager_host')
    assert events == ['eager_host']


def test_a_reloaded_host_registers_again(events: list[str]) -> None:
    autoload.install()
    importlib.reload(importlib.import_module('inner_host'))
    assert events == ['inner_host', 'inner_host']


def test_install_twice_adds_one_finder(events: list[str]) -> None:
    autoload.install()
    autoload.install()
    assert sys.meta_path.count(autoload.FINDER) == 1


def test_a_host_that_fails_is_not_registered(events: list[str]) -> None:
    autoload.install()
    with pytest.raises(ZeroDivisionError) as caught:
        importlib.import_module('broken_host')
    assert not hasattr(caught.value, '__notes__')
    assert events == []
    assert not autoload.FINDER.running


def test_a_missing_host_is_missing(events: list[str]) -> None:
    autoload.install()
    with pytest.raises(ModuleNotFoundError, match='missing_host'):
        importlib.import_module('missing_host')


def test_other_modules_are_not_ours(events: list[str]) -> None:
    assert autoload.FINDER.find_spec('json') is None


def test_an_error_says_how_to_switch_the_hook_off(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def register(host: str) -> None:
        raise ImportError('no such table')

    autoload.install()
    monkeypatch.setattr(autoload, 'register', register)
    with pytest.raises(ImportError, match='no such table') as caught:
        importlib.import_module('inner_host')
    assert caught.value.__notes__ == [
        'This came up when torchgeo_cmid registered with inner_host; '
        'TORCHGEO_CMID_AUTOLOAD=0 in the environment switches that off.'
    ]


def python(program: str, autoload: str) -> str:
    """Run a program in a new interpreter, which has started the hook or has not."""
    environment = {**os.environ, 'TORCHGEO_CMID_AUTOLOAD': autoload}
    return subprocess.run(
        [sys.executable, '-c', program],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.strip()


def test_the_hook_is_installed_as_it_is_in_the_repository() -> None:
    installed = Path(sysconfig.get_path('purelib'), 'torchgeo_cmid.pth')
    assert installed.read_text() == (ROOT / 'torchgeo_cmid.pth').read_text()


@pytest.mark.parametrize('autoload', ['0', '1'])
def test_torchgeo_alone_stays_light(autoload: str) -> None:
    program = 'import sys, torchgeo; print({"torch", "torchgeo_cmid"} & {*sys.modules})'
    assert python(program, autoload) == 'set()'


@pytest.mark.parametrize(('autoload', 'found'), [('0', 'False'), ('1', 'True')])
def test_a_submodule_of_torchgeo_brings_the_package(autoload: str, found: str) -> None:
    program = (
        'import sys, importlib.util\n'
        'importlib.util.find_spec("torchgeo.tasks")\n'
        'print("torchgeo_cmid.autoload" in sys.modules, "torch" in sys.modules)'
    )
    assert python(program, autoload) == f'{found} False'
