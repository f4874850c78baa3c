# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Make the table and the plot of the study from the results of its runs.

    python experiments/aid/table.py

Every number comes from a JSON in ``results``; a row without its runs is marked "not
run". It ends in an error where a result was made with other images, steps or rates than
the rest of its row.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from rows import ROWS
from run import RESULTS, chosen_rate

HERE = Path(__file__).parent
SEEDS = (0, 1, 2)

#: Figure -> column, and the factor by which it is shown.
COLUMNS = {
    'knn5': ('5-NN', 100),
    'linear': ('linear', 100),
    'few_shot_5': ('few-shot 5', 100),
    'correspondence': ('correspondence', 100),
    'effective_rank': ('effective rank', 1),
}


def read(row: str) -> list[dict[str, Any]]:
    """Read the runs of a row that were scored.

    Args:
        row: Name of the row.

    Returns:
        What was kept of each, in the order of the seeds.

    Raises:
        ValueError: If a run was made otherwise than the study says.
    """
    found = []
    for seed in SEEDS:
        path = RESULTS / 'score' / f'{row}-{seed}.json'
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        expected = {'row': row, 'seed': seed, 'part': 'score', 'lr': chosen_rate(row)}
        for name, value in expected.items():
            if result[name] != value:
                raise ValueError(f'{path}: {name}={result[name]}, not {value}')
        found.append(result)
    if len({(each['steps'], each['precision']) for each in found}) > 1:
        raise ValueError(f'{row}: its runs have different steps or precision')
    return found


def cell(results: list[dict[str, Any]], name: str, factor: float) -> str:
    """Show a figure of all seeds: mean, and each.

    Args:
        results: What was kept of the runs.
        name: Name of the figure.
        factor: By what it is multiplied.

    Returns:
        The text.
    """
    values = [r['figures'][name] * factor for r in results if name in r['figures']]
    if not values:
        return ''
    each = ', '.join(f'{value:.1f}' for value in values)
    return f'**{statistics.mean(values):.1f}** ({each})'


def table() -> str:
    """Make the table.

    Returns:
        Markdown.
    """
    head = ['row', 'rate', *(title for title, _ in COLUMNS.values())]
    head += ['ms / image', 'peak GiB', 'seeds']
    lines = [f'| {" | ".join(head)} |', '|' + ' --- |' * len(head)]
    for row in ROWS:
        results = read(row)
        if not results:
            lines.append(f'| {row} | not run |' + ' |' * (len(head) - 2))
            continue
        rate = results[0]['lr']
        cells = [row, '' if rate is None else f'{rate:g}']
        cells += [cell(results, name, factor) for name, (_, factor) in COLUMNS.items()]
        seconds = [r['seconds_per_image'] for r in results if r['seconds_per_image']]
        cells.append(f'{1000 * statistics.median(seconds):.2f}' if seconds else '')
        peaks = [r['peak_bytes'] / 2**30 for r in results if r['seconds_per_image']]
        cells += [f'{max(peaks):.2f}' if peaks else '', str(len(results))]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def plot(path: Path) -> None:
    """Plot each run: a global figure against a local one.

    Args:
        path: Where to.
    """
    figure, axes = plt.subplots(figsize=(7, 5), layout='constrained')
    markers = 'os^vD<>PXp*hd'
    for i, row in enumerate(row for row in ROWS if row != 'statistics'):
        results = read(row)
        if results:
            axes.plot(
                [100 * r['figures']['knn5'] for r in results],
                [100 * r['figures']['correspondence'] for r in results],
                markers[i % len(markers)],
                color=plt.cm.tab20(i % 20),  # type: ignore[attr-defined]
                label=row,
            )
    axes.set_xlabel('global: 5-NN accuracy, %')
    axes.set_ylabel('local: cells matched to the same ground, %')
    axes.legend(fontsize='small')
    figure.savefig(path, dpi=120)


def main() -> None:
    """Write both beside this file."""
    (HERE / 'table.md').write_text(table())
    plot(HERE / 'plot.png')
    print(table())


if __name__ == '__main__':
    main()
