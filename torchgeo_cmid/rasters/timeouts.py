# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""How long is waited for: servers that GDAL asks, and patterns of file names."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyogrio  # type: ignore[import-untyped]

#: Time limits in seconds where a server is asked, unless the environment says other.
LIMITS = {
    'GDAL_HTTP_CONNECTTIMEOUT': '10',
    'GDAL_HTTP_TIMEOUT': '60',
    'GDAL_HTTP_LOW_SPEED_TIME': '10',
    'GDAL_HTTP_LOW_SPEED_LIMIT': '1',
    'GDAL_HTTP_MAX_RETRY': '1',
    'GDAL_HTTP_RETRY_DELAY': '1',
}

#: Seconds that a regular expression may take for all file names.
PATTERN = 10

#: Tries a pattern: where it takes too long nothing but an end of the process helps.
PROGRAM = """
import json, re, sys
pattern, names = json.load(sys.stdin)
regex = re.compile(pattern, re.VERBOSE)
for name in names:
    regex.match(name)
"""


def limits() -> dict[str, str]:
    """Look up the time limits of requests to servers.

    Returns:
        GDAL's options.
    """
    return {name: os.environ.get(name, value) for name, value in LIMITS.items()}


@contextmanager
def time_limits() -> Iterator[None]:
    """Have GDAL, as pyogrio has it, not wait for ever where a server is asked.

    Yields:
        Nothing.
    """
    before = {name: pyogrio.get_gdal_config_option(name) for name in LIMITS}
    pyogrio.set_gdal_config_options(limits())
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options(before)


def check_pattern(filename_regex: str, names: Sequence[str]) -> None:
    """Find out in another process whether a pattern comes to an end.

    Args:
        filename_regex: Verbose regular expression that compiles or not.
        names: File names that it is going to be matched with.

    Raises:
        ValueError: If it does not in a few seconds.
    """
    text = json.dumps([filename_regex, list(names)])
    try:
        subprocess.run(
            [sys.executable, '-I', '-S', '-c', PROGRAM],
            input=text.encode(),
            capture_output=True,
            timeout=PATTERN,
            check=False,  # one that does not compile is refused by its own name
        )
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f'filename_regex={filename_regex!r:.300} takes more than {PATTERN} s for '
            f'{len(names)} file names, {names[0]!r:.100} for example: it tries too '
            r'many ways, as (\w+)+ does; leave repetitions of repetitions out'
        ) from error
