# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What may import what: read from the syntax tree, imports inside functions too."""

import ast
import importlib
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from torchgeo_cmid import moved

PACKAGE = 'torchgeo_cmid'
ROOT = Path(__file__).parents[1] / PACKAGE

#: Folder (or module of the top level) -> what it may import of the package. Data flows
#: one way: file -> rasters -> datasets, samplers -> data module -> transforms ->
#: networks -> losses -> task; callbacks watch, and measure by evaluation.
ALLOWED = {
    '__init__': {'autoload', 'datamodules', 'moved', 'tasks'},
    'autoload': {'registration'},
    'callbacks': {
        'datamodules',
        'datasets',
        'evaluation',
        'models',
        'networks',
        'rasters',
        'runs',
        'transforms',
    },
    'datamodules': {'datasets', 'numeric_range', 'rasters', 'samplers'},
    'datasets': {'rasters'},
    'distributed': set(),
    'evaluation': {'metrics', 'transforms'},
    'export': {'models'},
    'losses': {'distributed'},
    'metrics': set(),
    'models': {'moved'},
    'moved': set(),
    'networks': {'transforms'},
    'numeric_range': set(),
    'rasters': set(),
    'registration': {'callbacks', 'datamodules', 'models', 'runs', 'tasks'},
    'rules': set(),
    'runs': {'distributed', 'losses'},
    'samplers': {'datasets', 'rasters'},
    'schedules': set(),
    'tasks': {
        'callbacks',
        'datamodules',
        'distributed',
        'losses',
        'metrics',
        'models',
        'networks',
        'numeric_range',
        'rules',
        'runs',
        'schedules',
        'transforms',
    },
    'transforms': set(),
}

#: What computes, and is of use without Lightning.
PURE = {'evaluation', 'losses', 'networks', 'rasters', 'transforms'}
LIGHTNING = {'lightning', 'lightning_fabric', 'pytorch_lightning'}

#: File names that may stand in two folders: a command and its function, a data set and
#: its data module.
DOUBLE = {'export', 'olinda'}


def modules(root: Path) -> dict[str, Path]:
    """Modules of a package by their name in it, ``rasters`` for its ``__init__``."""
    found = {}
    for path in sorted(root.rglob('*.py')):
        name = '.'.join(path.relative_to(root).with_suffix('').parts)
        found[name.removesuffix('.__init__')] = path
    return found


def imports(path: Path, package: str) -> Iterator[str]:
    """Full names of what a file imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split('.')[: len(package.split('.')) - node.level + 1]
            home = '.'.join(
                [*(base if node.level else []), *filter(None, [node.module])]
            )
            yield from (f'{home}.{alias.name}' for alias in node.names)


def arrows(root: Path) -> dict[str, set[str]]:
    """What each module of a package imports: modules of it, and others in full."""
    known = modules(root)
    graph: dict[str, set[str]] = {}
    for module, path in known.items():
        is_package = path.name == '__init__.py' and module != '__init__'
        home = module if is_package else module.rpartition('.')[0]
        graph[module] = set()
        for name in imports(path, f'{PACKAGE}.{home}'.rstrip('.')):
            if not name.startswith(f'{PACKAGE}.'):
                graph[module].add(name)
                continue
            inside = name.removeprefix(f'{PACKAGE}.')
            while inside and inside not in known:  # a name in a module
                inside = inside.rpartition('.')[0]
            graph[module].add(inside or '__init__')
    return graph


def problems(root: Path) -> list[str]:
    """What is wrong with the imports of a package."""
    graph = arrows(root)
    found = []
    try:
        # an import inside a function of `registration` comes when all is loaded
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f'circle: {" <- ".join(error.args[1])}')
    for module, targets in graph.items():
        folder = module.partition('.')[0]
        for target in sorted(targets):
            if folder in PURE and target.split('.')[0] in (
                'lightning',
                'pytorch_lightning',
            ):
                found.append(f'{module} imports Lightning')
            if target not in graph:
                continue
            to = target.partition('.')[0]
            if to != folder and to not in ALLOWED.get(folder, set()):
                found.append(f'{module} imports {target}')
    return found


def test_imports() -> None:
    assert problems(ROOT) == []


def test_every_folder_has_its_arrows() -> None:
    assert {module.partition('.')[0] for module in modules(ROOT)} == set(ALLOWED)


def test_only_registration_imports_tasks() -> None:
    assert {name for name, to in ALLOWED.items() if 'tasks' in to} == {
        '__init__',
        'registration',
    }


@pytest.mark.parametrize(
    ('planted', 'line', 'problem'),
    [
        (
            'rasters/patch.py',
            'def late():\n    from ..datasets import Scenes',
            'rasters.patch imports datasets',
        ),
        ('callbacks/report.py', 'from ..tasks import CMID', 'callbacks.report imports'),
        ('runs/finite.py', 'import torchgeo_cmid.tasks.cmid', 'runs.finite imports'),
        ('losses/contrastive.py', 'import lightning.pytorch', 'imports Lightning'),
        ('networks/heads.py', 'from lightning.pytorch import Trainer', 'Lightning'),
        ('rasters/source.py', 'from .cache import BlockCache', 'circle: '),
        ('rasters/files.py', 'def late():\n    from . import scene', 'circle: '),
    ],
)
def test_planted_arrows_are_found(
    tmp_path: Path, planted: str, line: str, problem: str
) -> None:
    for path in ROOT.rglob('*.py'):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    assert problems(tmp_path) == []
    with (tmp_path / planted).open('a') as file:
        file.write(f'\n\n{line}\n')
    assert any(problem in found for found in problems(tmp_path))


def test_no_file_name_stands_twice() -> None:
    names = Counter(p.stem for p in ROOT.rglob('*.py') if p.stem != '__init__')
    assert {name for name, number in names.items() if number > 1} <= DOUBLE


@pytest.mark.parametrize('old', moved.MODULES)
def test_old_modules(old: str) -> None:
    new = importlib.import_module(f'{PACKAGE}.{moved.MODULES[old]}')
    assert importlib.import_module(f'{PACKAGE}.{old}') is new
    assert new.__spec__ is not None
    assert new.__spec__.name == new.__name__ == f'{PACKAGE}.{moved.MODULES[old]}'


@pytest.mark.parametrize('module', moved.NAMES)
def test_old_names(module: str) -> None:
    for name, home in moved.NAMES[module].items():
        before = importlib.import_module(f'{PACKAGE}.{module}')
        now = importlib.import_module(f'{PACKAGE}.{home}')
        assert getattr(before, name) is getattr(now, name)
    with pytest.raises(AttributeError, match='no attribute'):
        _ = before.nothing_of_this_name
