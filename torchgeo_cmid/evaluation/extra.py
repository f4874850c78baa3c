# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What needs scikit-learn, which is an extra."""

import importlib
from typing import Any


def scikit_learn(module: str) -> Any:
    """Import a module of scikit-learn.

    Args:
        module: Its name in scikit-learn, such as 'linear_model'.

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If scikit-learn is not installed.
    """
    try:
        return importlib.import_module(f'sklearn.{module}')
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "k-NN and linear probes need scikit-learn, which is in the extra 'eval': "
            "pip install 'torchgeo-cmid[eval]'"
        ) from error
