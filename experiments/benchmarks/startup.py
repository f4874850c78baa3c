# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Measures what the import hook costs when Python starts and TorchGeo is imported.

Every program is run in a new interpreter, alternately with and without the hook; the
first pair, which fills the disk cache, is thrown away.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time

# program, how many pairs, and the most that the hook may cost: ms or a share
PROGRAMS = (
    ('pass', 200, '< 3 ms'),
    ('import torchgeo', 100, '-'),
    ('import torchgeo.tasks', 8, '<= 10 %'),
)


def seconds(program: str, autoload: str) -> float:
    """Time one run of a program in a new interpreter.

    Args:
        program: Python code.
        autoload: Value of TORCHGEO_CMID_AUTOLOAD, '0' for no hook.

    Returns:
        The time from the start of the interpreter to its end.
    """
    environment = {**os.environ, 'TORCHGEO_CMID_AUTOLOAD': autoload}
    start = time.perf_counter()
    subprocess.run([sys.executable, '-c', program], env=environment, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Print a table: median times, the median difference, and the ratio of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--scale', type=float, default=1, help='times as many runs')
    scale = parser.parse_args().scale

    print(f'Python {platform.python_version()}, {os.cpu_count()} cores')
    print(f'{"program":24}{"pairs":>6}{"without":>12}{"with":>12}', end='')
    print(f'{"difference":>12}{"ratio":>8}  goal')
    for program, pairs, goal in PROGRAMS:
        without, with_hook = [], []
        for _ in range(1 + round(scale * pairs)):
            without.append(1e3 * seconds(program, '0'))
            with_hook.append(1e3 * seconds(program, '1'))
        del without[0], with_hook[0]
        difference = statistics.median(
            b - a for a, b in zip(without, with_hook, strict=True)
        )
        a, b = statistics.median(without), statistics.median(with_hook)
        print(f'{program:24}{len(without):6}{a:9.1f} ms{b:9.1f} ms', end='')
        print(f'{difference:+9.2f} ms{b / a:8.3f}  {goal}')


if __name__ == '__main__':
    main()
