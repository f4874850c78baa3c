# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""The table of an evaluation: as text, and as files in a folder of its own."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

Rows = Mapping[str, Mapping[str, float]]


def columns_of(rows: Rows) -> list[str]:
    """Name the columns of a table.

    Args:
        rows: Figures by row and column.

    Returns:
        The names, in the order in which they come.
    """
    return list(dict.fromkeys(name for figures in rows.values() for name in figures))


def as_text(rows: Rows) -> str:
    """Write a table with a line for each figure and a column for each network.

    Args:
        rows: Figures by network and name.

    Returns:
        The text.
    """
    names = columns_of(rows)
    wide = max(map(len, names))
    head = ' ' * wide + ''.join(f'  {network:>16}' for network in rows)
    lines = [
        f'{name:<{wide}}'
        + ''.join(
            f'  {figures[name]:>16.4f}' if name in figures else f'  {"-":>16}'
            for figures in rows.values()
        )
        for name in names
    ]
    return '\n'.join([head, *lines])


def write(rows: Rows, root: str | Path, command: str) -> Path:
    """Write a table as CSV and JSON, never over a file.

    Args:
        rows: Figures by network and name.
        root: Folder below which ``evaluation/<command>-<n>`` is made.
        command: 'validate' or 'test'.

    Returns:
        The new folder.
    """
    number = 0
    while True:
        folder = Path(root) / 'evaluation' / f'{command}-{number}'
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            number += 1
    content = {network: dict(figures) for network, figures in rows.items()}
    (folder / 'table.json').write_text(json.dumps(content, indent=1) + '\n')
    with (folder / 'table.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, ['network', *columns_of(rows)])
        writer.writeheader()
        for network, figures in content.items():
            writer.writerow({'network': network, **figures})
    return folder
