# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Builds the wheel, tries it in an empty environment, and uninstalls it (make package).

It is no pytest module: it installs every dependency anew and needs the network.
"""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ('torchgeo_cmid', 'torchgeo-cmid')


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the repository; its failure ends the check.

    Args:
        command: The program and its arguments.
        cwd: The folder to run it in.

    Returns:
        What it printed.
    """
    print('$', *command, flush=True)
    # As on a user's machine: byte code is written, and no variable of ours is set.
    ours = ('PYTHONDONTWRITEBYTECODE', 'PYTHONPATH', 'TORCHGEO_CMID_AUTOLOAD')
    environment = {key: os.environ[key] for key in os.environ if key not in ours}
    return subprocess.run(
        command, cwd=cwd, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def demand(condition: bool, message: str) -> None:
    """End the check unless a condition holds.

    Args:
        condition: What has to be true.
        message: What was found instead.
    """
    if not condition:
        sys.exit(f'make package: {message}')


def traces(folder: Path) -> list[str]:
    """List the files below a folder that name this package, in their path or text.

    Args:
        folder: The environment to search.

    Returns:
        Their paths, sorted.
    """
    found = []
    for path in folder.rglob('*'):
        named = any(name in str(path.relative_to(folder)) for name in NAMES)
        if not named and path.is_file() and not path.is_symlink():
            with path.open('rb') as file:
                is_text = b'\0' not in file.read(4096)
            content = path.read_bytes() if is_text else b''
            named = any(name.encode() in content for name in NAMES)
        if named:
            found.append(str(path))
    return sorted(found)


def main() -> None:
    """Build, install, use, uninstall."""
    with tempfile.TemporaryDirectory(prefix='wheel-') as folder:
        work = Path(folder)
        uv = Path(sys.executable).with_name('uv')
        pins = ROOT / 'constraints.txt'
        options = ('--python', sys.executable, '--build-constraints', pins, '-o', work)
        run(uv, 'build', '--wheel', *options, ROOT, cwd=work)
        [wheel] = work.glob('*.whl')
        shipped = zipfile.ZipFile(wheel).namelist()
        scenes = [name for name in shipped if name.endswith('.tif')]
        print(f'{wheel.name}: {len(shipped)} files, scenes {scenes}')
        demand(bool(scenes), 'the wheel holds no Landsat scene (*.tif)')

        venv.create(work / 'environment', with_pip=True)
        binaries = work / 'environment' / 'bin'
        python = binaries / 'python'
        demand(not traces(work / 'environment'), 'the empty environment is not empty')
        run(uv, 'pip', 'install', '--python', python, '-c', pins, wheel, cwd=work)

        torchgeo = binaries / 'torchgeo'
        config = run(torchgeo, 'fit', '--model', 'cmid', '--print_config', cwd=work)
        demand('class_path: torchgeo_cmid.' in config, f'no task cmid in:\n{config}')
        print(config[config.index('class_path: torchgeo_cmid.') :])
        installed = traces(work / 'environment')
        demand(any(name.endswith('.tif') for name in installed), 'no scene installed')

        run(python, '-m', 'pip', 'uninstall', '--yes', 'torchgeo-cmid', cwd=work)
        left = traces(work / 'environment')
        demand(not left, 'left after the uninstall: ' + ', '.join(left))
        print(f'{len(installed)} files installed, none left after the uninstall')


if __name__ == '__main__':
    main()
