# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A range of numbers that an argument may have, and its name in messages."""

import math
from typing import Any, NamedTuple


class Range(NamedTuple):
    """Numbers that an argument may have, and whether the ends are among them."""

    low: float
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True
    whole: bool = False

    def __str__(self) -> str:
        """The range in words."""
        kind = 'a whole number' if self.whole else 'a finite number'
        low = f'{"at least" if self.with_low else "above"} {self.low:g}'
        if math.isinf(self.high):
            return f'{kind}, {low}'
        high = f'{"at most" if self.with_high else "below"} {self.high:g}'
        return f'{kind}, {low} and {high}'

    def holds(self, value: Any) -> bool:
        """Tell whether a value lies in the range.

        Args:
            value: Any value.

        Returns:
            Whether it is a number of the range.
        """
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if not math.isfinite(value) or (self.whole and value != int(value)):
            return False
        above = value >= self.low if self.with_low else value > self.low
        below = value <= self.high if self.with_high else value < self.high
        return above and below
