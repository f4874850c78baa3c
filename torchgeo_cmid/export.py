# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Writes the backbone of a checkpoint into a file that stands on its own.

python -m torchgeo_cmid.export run.ckpt backbone.safetensors --network teacher
"""

import functools
import json
from typing import Any

from jsonargparse import auto_cli

from .models import export_backbone
from .models.reading import read_metadata


@functools.wraps(export_backbone)
def export(*args: Any, **kwargs: Any) -> None:
    """Export, and say what was written."""
    export_backbone(*args, **kwargs)
    output = kwargs.get('output') or args[1]
    facts = {n: v for n, v in read_metadata(output).items() if n != 'format'}
    print(f'wrote {output}')
    for name, value in facts.items():
        print(f'  {name}: {json.loads(value)}')
    model, bands = (json.loads(facts[name]) for name in ('model', 'in_channels'))
    print(
        f'fine-tune it: torchgeo fit --model Classification --model.model {model} '
        f'--model.in_channels {bands} --model.weights {output} --data ...'
    )


if __name__ == '__main__':
    auto_cli(export, as_positional=True)
