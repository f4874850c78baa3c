# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Randomness that follows from numbers, not from what has been drawn before."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(device: torch.device, *numbers: int) -> Iterator[None]:
    """Draw as *numbers* say, and leave the global generators as they were.

    A resumed run so draws the same views and masks as one that was never stopped.

    Args:
        device: Device on which is drawn.
        *numbers: What the draw follows from: seed, epoch, batch, rank, ...

    Yields:
        Nothing.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
    devices = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
