# Copyright (c) torchgeo-cmid Contributors. All rights reserved.
# Licensed under the MIT License.

"""Folders of images without a georeference: read, parted, resumed, refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from tests.tasks.tiny import TINY
from tests.trainers import quiet_trainer
from torchgeo_cmid.datamodules import ImageFolderDataModule, RasterFolderDataModule
from torchgeo_cmid.rasters.plain import read_image
from torchgeo_cmid.samplers import RandomImageSampler
from torchgeo_cmid.tasks import CMID


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / 'images' / 'ab'[i % 2] / f'{i}.{["jpg", "png", "tif"][i % 3]}'
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (20 + i, 60 - i, 3)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(path)
    return tmp_path / 'images'


def module(folder: Path, **arguments: Any) -> ImageFolderDataModule:
    made = ImageFolderDataModule(
        str(folder), **{'patch_size': 32, 'batch_size': 4, 'val_split': 0.2} | arguments
    )
    made.setup('fit')
    return made


def test_batches(folder: Path) -> None:
    made = module(folder, test_split=0.2)
    seen = [n for b in made.train_dataloader() for n in b['patch'][:, 0].tolist()]
    assert len(set(seen)) == len(seen) == len(made.images) // 4 * 4
    parts = [made.images, made.val_dataset, made.test_dataset]
    numbers = sorted(n for part in parts for n in part.numbers.tolist())  # type: ignore
    assert numbers == list(range(40))
    batch = next(iter(made.val_dataloader()))
    assert batch['image'].shape[1:] == (3, 32, 32)
    for number, label in zip(batch['patch'][:, 0], batch['label'], strict=True):
        name = Path(made.names.path(int(number))).parent.name
        assert made.images.classes[label] == name
    assert (made.in_channels, made.unit) == (3, 255)


def test_resume_and_workers(folder: Path) -> None:
    torch.manual_seed(3)
    made = module(folder)
    whole = list(made.train_dataloader())
    for workers in (0, 2):
        torch.manual_seed(4)
        resumed = module(folder, num_workers=workers)
        state = made.state_dict() | {'place': {'epoch': 0, 'batches': 2}}
        resumed.load_state_dict(state)
        rest = list(resumed.train_dataloader())
        assert len(rest) == len(whole) - 2
        for a, b in zip(rest, whole[2:], strict=True):
            assert all(torch.equal(a[key], b[key]) for key in b)


def test_ranks_and_epochs(folder: Path) -> None:
    images = module(folder).images
    whole = RandomImageSampler(images, length=8)
    ranks = [
        RandomImageSampler(images, length=8, num_replicas=2, rank=r) for r in (0, 1)
    ]
    pairs = zip(*ranks, strict=True)
    assert [draw for pair in pairs for draw in pair] == list(whole)
    seen = []
    for epoch in range(len(images) // 8):
        whole.set_epoch(epoch)
        seen += [draw.image for draw in whole]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize('kind', ['cut', 'cmyk', 'gray', 'u16', 'pipe', 'bits', 'text'])
def test_hostile(folder: Path, kind: str) -> None:
    made = module(folder)
    number = int(made.images.numbers[1])
    path = Path(made.names.path(number))
    image = Image.open(path).convert('RGB')
    whole = path.read_bytes()
    path.unlink()
    if kind == 'cut':
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == 'pipe':
        __import__('os').mkfifo(path)
    elif kind == 'text':
        path.write_text('<VRTDataset/>')
    elif kind == 'cmyk':
        image.convert('CMYK').save(path, 'jpeg')
    elif kind == 'u16':
        Image.fromarray(np.ones((9, 9), np.uint16)).save(path, 'png')
    else:
        image.convert({'gray': 'L', 'bits': '1'}[kind]).save(path, 'png')
    with pytest.raises((OSError, ValueError), match=path.name):
        _ = made.images[1]
    made.images.skip_bad_files = True
    with pytest.warns(UserWarning, match=f'skipped.*{path.name}'):
        sample = made.images[1]
    assert sample['patch'][0] == made.images.numbers[2]


def test_palette_and_alpha(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:4] = 200, 100, 50, 255
    Image.fromarray(pixels).save(tmp_path / 'alpha.png')
    data, valid, _ = read_image(str(tmp_path / 'alpha.png'), 0, 0, 8)
    assert len(data) == 3
    assert valid[:4].all()
    assert not valid[4:].any()
    Image.fromarray(pixels[..., :3]).quantize(4).save(tmp_path / 'palette.png')
    data, _, _ = read_image(str(tmp_path / 'palette.png'), 0, 0, 8)
    assert data[:, 0, 0].tolist() == [200, 100, 50]


def test_rasters_name_this_module(folder: Path) -> None:
    for path in (folder, folder / 'a' / '2.tif'):
        with pytest.raises((OSError, ValueError), match='ImageFolderDataModule'):
            RasterFolderDataModule(str(path)).setup('fit')
    for path in folder.glob('*/*.tif'):
        path.unlink()
    with pytest.raises(FileNotFoundError, match='ImageFolderDataModule'):
        RasterFolderDataModule(str(folder)).setup('fit')


@pytest.mark.parametrize(
    ('argument', 'value'),
    [('patch_size', 0), ('length', 0), ('val_split', 1.0), ('unit', 0)],
)
def test_out_of_range(argument: str, value: float) -> None:
    arguments: dict[str, Any] = {argument: value}
    with pytest.raises(ValueError, match=f'{argument}={value} must be'):
        ImageFolderDataModule('nowhere', **arguments)


def test_a_run_that_is_resumed(folder: Path, tmp_path: Path) -> None:
    """From the middle of an epoch it ends bit for bit as one that was not stopped."""

    def fit(name: str, start: Path | None = None) -> dict[str, torch.Tensor]:
        seed_everything(1, verbose=False)
        task = CMID(model='test_resnet', **(TINY | {'in_channels': 3}))
        images = ImageFolderDataModule(str(folder), patch_size=48, batch_size=8)
        every = ModelCheckpoint(
            tmp_path / name, '{step}', save_top_k=-1, every_n_train_steps=1
        )
        trainer = quiet_trainer(
            tmp_path, max_epochs=2, callbacks=[every], enable_checkpointing=True
        )
        trainer.fit(task, images, ckpt_path=start)
        return task.state_dict()

    whole = fit('whole')
    for step in (2, 4, 5):
        end = fit(f'from {step}', tmp_path / 'whole' / f'step={step}.ckpt')
        for tensor, expected in zip(end.values(), whole.values(), strict=True):
            assert torch.equal(tensor, expected)


def test_other_bands_on_resume(folder: Path) -> None:
    made = module(folder)
    made.train_dataloader()
    state = made.state_dict()
    for path in folder.glob('*/*'):
        Image.open(path).convert('L').save(path)
    with pytest.raises(
        ValueError, match=r'made with bands=\[1, 2, 3\], but the data has \[1\]'
    ):
        module(folder).load_state_dict(state)
