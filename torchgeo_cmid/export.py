# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Writes the backbone of a checkpoint into a file that stands on its own.

python -m torchgeo_cmid.export run.ckpt backbone.safetensors --network teacher
"""

from jsonargparse import auto_cli

from .models import export_backbone

if __name__ == '__main__':
    auto_cli(export_backbone, as_positional=True)
