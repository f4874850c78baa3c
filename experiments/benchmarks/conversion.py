# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""What it costs to bring the published Swin-B into a model.

On a file of the published layout with random values this times

* conversion and strict load: published names to timm's, patch merging reordered, every
  tensor accounted for, copied into a model that is there,
* the whole way: the file read, its SHA-256 compared, the model made, and the above,

and prints medians, and the peak resident memory over what the process had before, as a
multiple of the weights' size. Each run is a process of its own.

    python experiments/benchmarks/conversion.py --threads 2
"""

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import timm
import torch

from torchgeo_cmid.models import (
    CMIDSwinB_Weights,
    cmid_swin_b,
    convert_official_backbone,
)
from torchgeo_cmid.models.architectures import SWIN_B
from torchgeo_cmid.models.loading import load_strictly
from torchgeo_cmid.models.official import official_backbone_name

SWIN = 'swin_base_patch4_window7_224'


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def resident_mib() -> float:
    """Resident memory of this process now."""
    match = re.search(r'VmRSS:\s*(\d+)', Path('/proc/self/status').read_text())
    assert match is not None
    return int(match[1]) / 2**10


def write(path: Path) -> float:
    """Write a file of the published layout; return its weights' size in MiB."""
    state = timm.create_model(SWIN, num_classes=0).state_dict()
    torch.save({official_backbone_name(k, SWIN_B): v for k, v in state.items()}, path)
    return sum(tensor.nbytes for tensor in state.values()) / 2**20


def run(path: Path, way: str) -> dict[str, float]:
    """Do it once, in this process."""
    if way == 'conversion and strict load':
        model = timm.create_model(SWIN, num_classes=0)
        before = resident_mib()
        state = torch.load(path, weights_only=True)
        start = time.perf_counter()
        load_strictly(model, convert_official_backbone(state), str(path))
        # what it costs above the model that is there counts the model, too
        size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 2**20
        before -= size
    else:
        before = resident_mib()
        start = time.perf_counter()
        torch.hub.set_dir(str(path.parent.parent))
        cmid_swin_b(CMIDSwinB_Weights.MILLIONAID, num_classes=0)
    return {'seconds': time.perf_counter() - start, 'mib': peak_mib() - before}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--file', type=Path, help='used by itself')
    parser.add_argument('--way', help='used by itself')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.file:
        print(json.dumps(run(args.file, args.way)))
        return

    ways = ('conversion and strict load', 'the whole way')
    results: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'checkpoints', CMIDSwinB_Weights.MILLIONAID.file_name)
        path.parent.mkdir()
        size = write(path)
        for _ in range(args.rounds):
            for way in ways:
                command = [sys.executable, __file__, f'--threads={args.threads}']
                command += [f'--file={path}', f'--way={way}']
                output = subprocess.run(
                    command, check=True, capture_output=True, text=True
                ).stdout
                results[way].append(json.loads(output.splitlines()[-1]))

    print(
        f'{SWIN}, {size:.0f} MiB; torch {torch.__version__}, {args.threads} threads, '
        f'{args.rounds} processes each'
    )
    print(f'{"":28}{"median s":>10}{"min s":>8}{"max s":>8}{"peak / size":>13}')
    for way, runs in results.items():
        seconds = [each['seconds'] for each in runs]
        memory = statistics.median(each['mib'] for each in runs) / size
        print(
            f'{way:28}{statistics.median(seconds):10.2f}{min(seconds):8.2f}'
            f'{max(seconds):8.2f}{memory:13.2f}'
        )


if __name__ == '__main__':
    main()
