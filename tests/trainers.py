# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A trainer for a test: on the CPU, silent, nothing kept."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def quiet_trainer(root: Path, **kwargs: Any) -> Trainer:
    """Make a trainer that writes below a folder, if it writes at all."""
    quiet: dict[str, Any] = {
        'accelerator': 'cpu',
        'max_epochs': 1,
        'logger': False,
        'default_root_dir': root,
        'enable_checkpointing': False,
        'enable_progress_bar': False,
        'enable_model_summary': False,
    }
    return Trainer(**(quiet | kwargs))
