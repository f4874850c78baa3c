# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A configuration whose aliases unfold to billions of values is refused.

YAML names a value once and repeats it by an alias: seven levels of ten fit on a page,
are loaded at once, and keep whoever walks through them busy for hours.
"""

from collections.abc import Callable
from typing import Any

import yaml

#: Values that a configuration may hold when all aliases are written out.
MAX_VALUES = 100_000


def count_values(value: Any) -> int:
    """Count the values of nested lists and dicts, shared ones as often as they stand.

    Args:
        value: What was loaded.

    Returns:
        The number of values, leaves and containers alike.

    Raises:
        yaml.YAMLError: If a value contains itself.
    """
    counts: dict[int, int] = {}
    open_: set[int] = set()

    def count(each: Any) -> int:
        if not isinstance(each, dict | list):
            return 1
        if id(each) in counts:
            return counts[id(each)]
        if id(each) in open_:
            raise yaml.YAMLError('an alias stands inside of what it repeats')
        open_.add(id(each))
        parts = each.values() if isinstance(each, dict) else each
        counts[id(each)] = 1 + sum(map(count, parts))
        open_.remove(id(each))
        return counts[id(each)]

    return count(value)


def guarded(load: Callable[..., Any]) -> Callable[..., Any]:
    """Let a loader of YAML refuse what its aliases make too large.

    Args:
        load: Takes text.

    Returns:
        The same, but for a :class:`yaml.YAMLError`, which parsers of command lines
        expect, where there are over 100,000 values. It may be given the file's path.
    """

    def load_guarded(stream: str, path: str = '') -> Any:
        value = load(stream)
        number = count_values(value)
        if number > MAX_VALUES:
            named = f"'{path}'" if path else 'a value'
            raise yaml.YAMLError(
                f'{named}: its aliases unfold to {number:,} values, of which '
                f'{MAX_VALUES:,} are allowed: write out what is meant'
            )
        return value

    load_guarded.guarded_by_torchgeo_cmid = True  # type: ignore[attr-defined]
    return load_guarded
