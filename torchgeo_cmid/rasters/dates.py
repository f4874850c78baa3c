# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""When a scene was taken, by the names of its files."""

import os
import re

import pandas as pd
from torchgeo.datasets.utils import disambiguate_timestamp

#: The time of a scene whose date is not known.
UNBOUNDED = pd.Interval(pd.Timestamp.min, pd.Timestamp.max, closed='both')

#: Groups of a regular expression that tell the time of a scene.
GROUPS = ('date', 'start', 'stop')


def find_interval(
    path: str, filename_regex: str | None, date_format: str
) -> pd.Interval:
    """Read the time of a scene from the name of its file.

    The groups are those of :class:`~torchgeo.datasets.RasterDataset`: ``date``, or
    ``start`` and ``stop``.

    Args:
        path: File of the scene.
        filename_regex: Verbose regular expression that matches its name.
        date_format: How dates are written, as of :meth:`datetime.datetime.strptime`.

    Returns:
        The time, both ends included, unbounded where no group tells it.

    Raises:
        ValueError: If a date is not written so, or a scene stops before it starts.
    """
    match = re.match(filename_regex or '', os.path.basename(path), re.VERBOSE)
    found = match.groupdict() if match else {}
    start = found.get('date') or found.get('start')
    stop = found.get('date') or found.get('stop')
    if start is None or stop is None:
        return UNBOUNDED
    try:
        first, _ = disambiguate_timestamp(start, date_format)
        _, last = disambiguate_timestamp(stop, date_format)
        # to_datetime gives universal time to what tells its zone, and no zone to others
        first, last = (
            time.tz_convert('UTC').tz_localize(None) if time.tz else time
            for time in (first, last)
        )
        return pd.Interval(first, last, closed='both')
    except ValueError as error:
        raise ValueError(
            f'{path}: its name has the dates {start!r} to {stop!r}, which '
            f'date_format={date_format!r} does not read; correct the format or '
            f'filename_regex ({error})'
        ) from error
