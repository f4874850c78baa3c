# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""A further published backbone is one entry of the table, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import torchgeo_cmid

# What a new entry is appended as, to a copy of the package.
ENTRIES = """

from dataclasses import replace
from timm.models.resnet import BasicBlock

third = replace(
    RESNET50, name='cmid_resnet18', weights_class='CMIDResNet18_Weights',
    timm_name='resnet18', arguments={'block': BasicBlock, 'layers': [2, 2, 2, 2]},
    files={'MILLIONAID': ('0123', 'MillionAID', 100)},
)
fourth = replace(
    SWIN_B, name='cmid_swin_t', weights_class='CMIDSwinT_Weights',
    timm_name='swin_tiny_patch4_window7_224', files={},
    arguments={'embed_dim': 96, 'depths': (2, 2, 6, 2), 'num_heads': (3, 6, 12, 24),
               'window_size': 7, 'strict_img_size': False},
)
ARCHITECTURES |= {entry.name: entry for entry in (third, fourth)}
"""

SCRIPT = """
import pickle
import torch
import segmentation_models_pytorch as smp
import timm
from torchgeo.models import get_model, get_weight
from torchgeo_cmid.models import architectures, convert_official_backbone, official
from torchgeo_cmid.tasks.detection import CMIDObjectDetection

images = torch.rand(2, 3, 64, 64)
assert get_weight('cmid_resnet18').meta['epochs'] == 100
for name, widths in (('cmid_resnet18', [3, 64, 64, 128, 256, 512]),
                     ('cmid_resnet50', [3, 64, 256, 512, 1024, 2048]),
                     ('cmid_swin_t', [3, 0, 96, 192, 384, 768]),
                     ('cmid_swin_b', [3, 0, 128, 256, 512, 1024])):
    made = get_model(name, num_classes=0)
    entry = architectures.ARCHITECTURES[name]
    reference = timm.create_model(entry.timm_name, num_classes=0)
    assert {k: v.shape for k, v in made.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()}
    encoder = smp.encoders.get_encoder(name, weights=None)
    assert encoder.out_channels == widths and encoder.name == name
    assert [m.shape[1] for m in encoder(images)] == widths
    assert encoder.pretrained_cfg['first_conv'] == entry.first_conv
    pickle.loads(pickle.dumps(encoder))
    state = reference.state_dict()
    assert official.find_architecture(state) is entry
    published = {official.official_backbone_name(k, entry): v for k, v in state.items()}
    assert official.find_architecture(published) is entry
    assert convert_official_backbone(published).keys() == state.keys()
    CMIDObjectDetection(model='faster-rcnn', backbone=name, in_channels=4)
print('made of one entry')
"""


def test_one_entry(tmp_path: Path) -> None:
    """Regression: a third one had no encoder, and passed for the first of its stem."""
    copy = shutil.copytree(
        Path(torchgeo_cmid.__file__).parent, tmp_path / 'torchgeo_cmid'
    )
    with (copy / 'models' / 'architectures.py').open('a') as file:
        file.write(ENTRIES)
    run = subprocess.run(
        [sys.executable, '-c', SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, 'PYTHONPATH': str(tmp_path)},
        cwd=tmp_path,
    )
    assert run.stdout.endswith('made of one entry\n'), run.stderr
