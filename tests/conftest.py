# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Sets what every test and the programs they start rely on.

Everything here is read when a library is first imported, so before any test is.
"""

import ctypes
import gc
import os

# Two workers on two cores: one thread each, which golden curves need anyway.
os.environ['OMP_NUM_THREADS'] = '1'
# pytest-socket guards this process; started programs must not look for models either.
os.environ['HF_HUB_OFFLINE'] = '1'
# Figures are drawn to files.
os.environ['MPLBACKEND'] = 'Agg'

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.published import write_cache

_LIBC = ctypes.CDLL(None)


@pytest.fixture(scope='session')
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of torch.hub that holds the published backbones, with random values."""
    hub, before = tmp_path_factory.mktemp('hub'), torch.hub.get_dir()
    write_cache(hub)
    torch.hub.set_dir(str(hub))
    yield hub / 'checkpoints'
    torch.hub.set_dir(before)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is imported, most of all there is."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let everything go in its order."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _collect_garbage() -> Iterator[None]:
    """Free the models of a test at its end.

    Trainer and task refer to each other, and a few large tensors are no reason for
    Python to look for such circles: workers grew to 6.5 GB.
    """
    yield
    gc.collect()
    if hasattr(_LIBC, 'malloc_trim'):  # glibc keeps what was freed
        _LIBC.malloc_trim(0)
